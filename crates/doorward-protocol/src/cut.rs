//! Takes appended rows out of the upstream's answer again, and reads what it says of all of them.
//!
//! Every output has the batch first, whatever its rank. What stays keeps its spelling: numbers,
//! ids, parameters and keys that nobody here knows.

use bytes::Bytes;
use hyper::HeaderMap;

use super::binary::{self, JSON_LENGTH};
use super::datatype::Datatype;
use super::text::{Members, array, items, members};

/// The facts on a request that its answer is read by.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Rows of the client, which stay.
    pub rows: usize,
    /// Rows in all.
    pub total: usize,
    /// The number of labels a prediction is over.
    pub labels: usize,
    /// The name of the output in the model's file.
    pub output: Option<&'a str>,
    /// True if the client chose the outputs. Then another output than that one tells nothing: who
    /// chooses what is judged chooses the verdict.
    pub selective: bool,
}

/// An answer to the client's rows alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Its body.
    pub body: Bytes,
    /// The number of bytes of it are JSON, where bytes of tensors follow.
    pub json_length: Option<usize>,
    /// The predictions of all rows, if they can be told.
    pub predictions: Option<Told>,
}

/// The content of an answer on rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A label per row.
    Labels(Vec<usize>),
    /// A score per label, row by row.
    Scores(Vec<f32>),
}

/// Why an answer cannot be cut.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// An output that does not hold one entry a row.
    #[error(
        "{output} has {received} as its first dimension, expected the {expected} rows that were sent"
    )]
    Batch {
        /// The output.
        output: String,
        /// Its first dimension, or that it has none.
        received: String,
        /// Rows in all.
        expected: usize,
    },
    /// An answer with a content coding that was not asked for.
    #[error("it has a content coding")]
    Coded,
    /// Not an answer of the protocol's form.
    #[error("{0}")]
    Form(&'static str),
    /// Not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// An output of V2 that may hold the predictions.
struct Candidate {
    scores: bool,
    named: bool,
    values: Vec<f32>,
}

pub(crate) fn cut_v2(headers: &HeaderMap, body: &Bytes, asked: Asked<'_>) -> Result<Cut, CutError> {
    let length = match headers.get(JSON_LENGTH) {
        None => None,
        Some(length) => {
            let length = length.to_str().ok().and_then(|length| length.trim().parse().ok());
            let misfit = CutError::Form("its inference-header-content-length is no length in it");
            Some(length.filter(|&length: &usize| length <= body.len()).ok_or(misfit)?)
        }
    };
    let (text, mut rest) = body.split_at(length.unwrap_or(body.len()));
    let mut document = members(text_of(text)?)?;
    let outputs = document.get("outputs").ok_or(CutError::Form("it has no outputs"))?;
    let (mut cut, mut tail, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
    for output in items(outputs)? {
        let mut output = members(output)?;
        let candidate = cut_output(&mut output, &mut rest, &mut tail, asked)?;
        candidates.extend(candidate);
        cut.push(output.text());
    }
    if !rest.is_empty() {
        return Err(CutError::Form("bytes that belong to no output follow its JSON"));
    }
    let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
    document.set("outputs", array(&cut));
    let mut body = document.text().into_bytes();
    let json_length = length.map(|_| body.len());
    body.append(&mut tail);
    let predictions = choose(candidates, asked);
    Ok(Cut { body: body.into(), json_length, predictions })
}

/// Cuts one output; what it has behind the JSON is moved from `rest` to `tail`.
fn cut_output(
    output: &mut Members<'_>,
    rest: &mut &[u8],
    tail: &mut Vec<u8>,
    asked: Asked<'_>,
) -> Result<Option<Candidate>, CutError> {
    let name: String = match output.get("name") {
        Some(name) => serde_json::from_str(name)?,
        None => return Err(CutError::Form("an output has no name")),
    };
    let shape: Vec<usize> = match output.get("shape") {
        Some(shape) => serde_json::from_str(shape)?,
        None => return Err(CutError::Form("an output has no shape")),
    };
    let datatype: String = match output.get("datatype") {
        Some(datatype) => serde_json::from_str(datatype)?,
        None => return Err(CutError::Form("an output has no datatype")),
    };
    let misfit = |received: String| CutError::Batch {
        output: format!("output {name:?}"),
        received,
        expected: asked.total,
    };
    match shape.first() {
        Some(&first) if first == asked.total => {}
        Some(first) => return Err(misfit(first.to_string())),
        None => return Err(misfit("nothing".to_owned())),
    }
    let beyond = || CutError::Form("an output's shape is too large");
    let (mut each, mut trailing) = (1usize, 1usize);
    for (place, &length) in shape.iter().enumerate().skip(1) {
        each = each.checked_mul(length).ok_or_else(beyond)?;
        trailing = if place > 1 { trailing.max(length) } else { trailing };
    }
    let scores = each == asked.labels && shape.get(1) == Some(&each) && trailing == 1;
    let of_label = each == 1 && datatype.contains("INT");
    let wanted = if datatype.contains("INT") { of_label } else { scores };
    let size = match output.get("parameters") {
        Some(parameters) if parameters != "null" => {
            members(parameters)?.get(binary::SIZE).map(serde_json::from_str::<usize>).transpose()?
        }
        _ => None,
    };
    let values = match size {
        Some(size) => {
            let bytes = rest.split_at_checked(size);
            let (bytes, others) =
                bytes.ok_or(CutError::Form("fewer bytes follow its JSON than its outputs have"))?;
            *rest = others;
            let kept = kept_bytes(bytes, &datatype, each, asked)?;
            tail.extend_from_slice(&bytes[..kept]);
            let mut parameters = members(output.get("parameters").unwrap_or("{}"))?;
            parameters.set(binary::SIZE, kept.to_string());
            let parameters = parameters.text();
            output.set("parameters", parameters);
            wanted.then(|| read(bytes, &datatype)).flatten()
        }
        None => {
            let Some(data) = output.get("data") else {
                return Err(CutError::Form("an output has no data"));
            };
            let all = items(data)?;
            // Flat, or an array a row.
            let a_row = match all.len() {
                count if count == asked.total * each && !all.iter().any(|item| is_array(item)) => {
                    each
                }
                count if count == asked.total => 1,
                _ => return Err(CutError::Form("an output's data does not fit its shape")),
            };
            let cut = array(&all[..asked.rows * a_row]);
            let values = wanted.then(|| flat_numbers(&all)).flatten();
            output.set("data", cut);
            values
        }
    };
    let shape = [&[asked.rows], &shape[1..]].concat();
    output.set("shape", serde_json::json!(shape).to_string());
    let named = asked.output == Some(name.as_str());
    Ok(values.map(|values| Candidate { scores, named, values }))
}

/// The number of of a tensor's bytes are the client's rows.
fn kept_bytes(
    bytes: &[u8],
    datatype: &str,
    each: usize,
    asked: Asked<'_>,
) -> Result<usize, CutError> {
    let misfit = CutError::Form("an output's binary_data_size does not fit its shape");
    if datatype != "BYTES" {
        let fits = bytes.len().is_multiple_of(asked.total.max(1));
        return if fits { Ok(bytes.len() / asked.total * asked.rows) } else { Err(misfit) };
    }
    // Each element is its length in four bytes and as many bytes.
    let (mut place, mut kept) = (0, 0);
    for element in 0..asked.total.saturating_mul(each) {
        if element == asked.rows * each {
            kept = place;
        }
        let length = bytes.get(place..).and_then(|rest| rest.first_chunk::<4>());
        let Some(&length) = length else { return Err(misfit) };
        place = place.saturating_add(4).saturating_add(u32::from_le_bytes(length) as usize);
    }
    if place != bytes.len() {
        return Err(misfit);
    }
    Ok(if asked.rows == asked.total { place } else { kept })
}

/// Values of a tensor behind the JSON.
fn read(bytes: &[u8], datatype: &str) -> Option<Vec<f32>> {
    fn integers<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> i64) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|&bytes| value(bytes) as f32).collect()
    }
    match datatype {
        "INT16" => Some(integers(bytes, |bytes| i16::from_le_bytes(bytes).into())),
        "UINT16" => Some(integers(bytes, |bytes| u16::from_le_bytes(bytes).into())),
        "INT32" => Some(integers(bytes, |bytes| i32::from_le_bytes(bytes).into())),
        "UINT32" => Some(integers(bytes, |bytes| u32::from_le_bytes(bytes).into())),
        "INT64" | "UINT64" => Some(integers(bytes, i64::from_le_bytes)),
        _ => Some(Datatype::parse(datatype)?.read(bytes)),
    }
}

/// Chooses the output that tells: the one of the model's name, else the only one with scores, else
/// the only one with labels.
fn choose(candidates: Vec<Candidate>, asked: Asked<'_>) -> Option<Told> {
    let (named, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|one| one.named);
    if let Some(one) = named.into_iter().next() {
        return predictions(one, asked);
    }
    if asked.selective {
        return None;
    }
    let (scores, labels): (Vec<_>, Vec<_>) = others.into_iter().partition(|one| one.scores);
    let found = if scores.is_empty() { labels } else { scores };
    let [one] = <[Candidate; 1]>::try_from(found).ok()?;
    predictions(one, asked)
}

fn predictions(one: Candidate, asked: Asked<'_>) -> Option<Told> {
    if one.scores {
        return scores(one.values, asked);
    }
    labels(&one.values, asked)
}

/// As many scores as rows have labels.
fn scores(values: Vec<f32>, asked: Asked<'_>) -> Option<Told> {
    (values.len() == asked.total * asked.labels).then_some(Told::Scores(values))
}

/// Labels are small whole numbers.
fn labels(values: &[f32], asked: Asked<'_>) -> Option<Told> {
    let labels = values.iter().map(|&value| {
        (value >= 0.0 && value.fract() == 0.0 && value < asked.labels as f32)
            .then_some(value as usize)
    });
    let labels: Vec<usize> = labels.collect::<Option<_>>()?;
    (labels.len() == asked.total).then_some(Told::Labels(labels))
}

pub(crate) fn cut_v1(body: &Bytes, asked: Asked<'_>) -> Result<Cut, CutError> {
    let mut document = members(text_of(body)?)?;
    let predictions = if let Some(found) = document.get("predictions") {
        let rows = rows_of("predictions", found, asked)?;
        let values = v1_rows(&rows, asked);
        let cut = array(&rows[..asked.rows]);
        document.set("predictions", cut);
        values
    } else {
        let found = document.get("outputs");
        let found = found.ok_or(CutError::Form("it has neither predictions nor outputs"))?;
        let (cut, values) = if is_array(found) {
            let rows = rows_of("outputs", found, asked)?;
            (array(&rows[..asked.rows]), v1_rows(&rows, asked))
        } else {
            let mut outputs = members(found)?;
            let (only, mut values) = (outputs.0.len() == 1, None);
            for (name, output) in &mut outputs.0 {
                let rows = rows_of(name, output, asked)?;
                let (cut, found) = (array(&rows[..asked.rows]), v1_rows(&rows, asked));
                if only || asked.output == Some(name.as_str()) {
                    values = found;
                }
                *output = cut.into();
            }
            (outputs.text(), values)
        };
        document.set("outputs", cut);
        values
    };
    Ok(Cut { body: document.text().into(), json_length: None, predictions })
}

/// The items of an array that has one a row.
fn rows_of<'a>(name: &str, text: &'a str, asked: Asked<'_>) -> Result<Vec<&'a str>, CutError> {
    let rows = items(text)?;
    if rows.len() == asked.total {
        return Ok(rows);
    }
    let (output, received) = (name.to_owned(), rows.len().to_string());
    Err(CutError::Batch { output, received, expected: asked.total })
}

/// Reads V1's rows: an array of scores, a label, or an object with one of them.
fn v1_rows(rows: &[&str], asked: Asked<'_>) -> Option<Told> {
    let own: Vec<String> = rows
        .iter()
        .map(|row| match row.starts_with('{') {
            false => Some((*row).to_owned()),
            true => {
                let object = members(row).ok()?;
                let named = asked.output.and_then(|name| object.get(name));
                let only = if object.0.len() == 1 { object.0.first() } else { None };
                named.map(str::to_owned).or_else(|| only.map(|(_, value)| value.to_string()))
            }
        })
        .collect::<Option<_>>()?;
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let values = flat_numbers(&own)?;
    if own.first().is_some_and(|row| is_array(row)) {
        return scores(values, asked);
    }
    // `3.0` is a score without a name, `3` a label.
    let whole = own.iter().all(|row| row.bytes().all(|byte| byte.is_ascii_digit()));
    whole.then(|| labels(&values, asked)).flatten()
}

/// The numbers in items that are numbers, or nested arrays of numbers.
fn flat_numbers(texts: &[&str]) -> Option<Vec<f32>> {
    let mut values = Vec::new();
    for text in texts {
        if is_array(text) {
            match serde_json::from_str::<Vec<f32>>(text) {
                Ok(row) => values.extend(row),
                Err(_) => values.extend(flat_numbers(&items(text).ok()?)?),
            }
        } else {
            values.push(serde_json::from_str(text).ok()?);
        }
    }
    Some(values)
}

fn is_array(text: &str) -> bool {
    text.starts_with('[')
}

fn text_of(bytes: &[u8]) -> Result<&str, CutError> {
    std::str::from_utf8(bytes).map_err(|_| CutError::Form("it is not UTF-8"))
}

#[cfg(test)]
mod tests;
