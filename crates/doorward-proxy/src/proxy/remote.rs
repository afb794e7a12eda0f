//! The request path where the upstream predicts: the perturbed copies go with the client's rows in
//! one request, and its answer is cut back.
//!
//! It is one request, whatever becomes of it: nothing is sent twice. Where the answer tells nothing
//! of the rows, the local detector judges them, so that no answer, and no choice of outputs by a
//! client, is a way round the verdict.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::response;
use hyper::{HeaderMap, Response};

use super::gate::{Answer, Forwarded, Gate, Serve, Stopped, call};
use super::record::Record;
use super::respond::Failure;
use super::screen::{Understood, Unverified, Wire, input};
use crate::telemetry::RemoteRows;
use crate::telemetry::spans::Interval;
use crate::verdict::{Reason, Verdict};
use doorward_detection::{Concluded, Copies, Judgement};
use doorward_engine::{OutputKind, Predictions};
use doorward_protocol::Format;
use doorward_protocol::{Appended, Asked, Cut, CutError, Told};
use doorward_protocol::{DecodeError, Encoded, binary};

/// Says how many rows were appended: to the upstream, and to a client whose request it refuses.
const APPENDED_ROWS: HeaderName = HeaderName::from_static("x-doorward-appended-rows");

/// A request with its copies.
struct Enlarged {
    encoded: Encoded,
    copies: Copies,
    labels: usize,
    output: Option<String>,
    kind: OutputKind,
    selective: bool,
}

/// An answer, cut back where that makes sense.
struct Answered {
    answer: Result<Answer, Failure>,
    /// The predictions of the rows and the copies.
    predictions: Option<Predictions>,
}

// === impl Gate ===

impl Gate {
    /// The way of an inference request whose body is read, where the upstream predicts.
    pub(super) async fn infer_remotely(
        &self,
        format: Format,
        parts: Parts,
        body: Bytes,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Result<(Verdict, Answer), Stopped> {
        let understood = self
            .screen
            .understand(Wire::Rest(format), parts.uri.path(), &parts.headers, &body)
            .await;
        let request = match understood {
            Ok(request) => request,
            Err(unverified) => return self.unverified(unverified, parts, body, to, record).await,
        };
        record.submitted(request.rows, &request.inputs);
        let enlarged = match self.enlarge(format, &request).await {
            Ok(Some(enlarged)) => enlarged,
            Ok(None) => {
                self.metrics.remote_rows(RemoteRows::Untold, request.rows);
                return match self.screen.queue_rows(request) {
                    Ok(pending) => self.judge_and_forward(parts, pending, to, record).await,
                    Err(unverified) => self.unverified(unverified, parts, body, to, record).await,
                };
            }
            Err(unverified) => return self.unverified(unverified, parts, body, to, record).await,
        };
        drop(body);
        let mut answered = self.exchange(format, parts, &request, &enlarged, to, record).await;
        let judged = self.conclude(&request, enlarged, answered.predictions.take()).await;
        record.detection = Some(Interval::since(request.since));
        let verdict = self.settle(judged, record)?;
        match answered.answer {
            Ok(answer) => Ok((verdict, answer)),
            Err(failure) => Err(Stopped { verdict, failure }),
        }
    }

    /// Makes the copies; `None` where the upstream cannot be asked about them.
    async fn enlarge(
        &self,
        format: Format,
        request: &Understood,
    ) -> Result<Option<Enlarged>, Unverified> {
        let (rows, values) = (request.rows, Arc::clone(&request.inputs.values));
        let asked = self.screen.ask(rows, move |judge| {
            let Some(remote) = judge.remote() else { return Ok(None) };
            let output = remote.output_name().map(str::to_owned);
            let kind = remote.output_kind();
            let copies = remote.copies(&values)?;
            Ok(copies.map(|mut copies| {
                let input = input(judge.domain());
                let sent = input.sent_of_rows(copies.take_values());
                (copies, sent, input.sent_shape(), remote.labels(), output, kind)
            }))
        });
        let Some((copies, sent, shape, labels, output, kind)) = asked.await? else {
            return Ok(None);
        };
        if let Some(limit) = self.max_rows.map(|limit| limit.get())
            && rows + copies.len() > limit
        {
            let failure = DecodeError::Copies { rows, copies: copies.len(), limit };
            let unverified = Unverified::new(Failure::Decode(failure), Reason::Undecodable);
            return Err(Unverified { rows, ..unverified });
        }
        let encoded = request.encoded.clone();
        // As much text again as the request had, twice or thrice.
        let appended = tokio::task::spawn_blocking(move || format.append(&encoded, &sent, shape));
        let internal = |_| Unverified::new(Failure::Internal, Reason::Internal);
        let Some(Appended { encoded, selective }) = appended.await.map_err(internal)? else {
            return Ok(None);
        };
        Ok(Some(Enlarged { encoded, copies, labels, output, kind, selective }))
    }

    async fn exchange(
        &self,
        format: Format,
        parts: Parts,
        request: &Understood,
        enlarged: &Enlarged,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Answered {
        let appended = enlarged.copies.len();
        self.metrics.remote_rows(RemoteRows::Copied, appended);
        let mut call = call(parts, Forwarded::Reencoded(enlarged.encoded.clone()));
        // What is coded cannot be cut.
        call.headers.remove(ACCEPT_ENCODING);
        call.headers.insert(APPENDED_ROWS, HeaderValue::from(appended));
        let since = Instant::now();
        let reply = to.send(call).await;
        record.upstream = Some(Interval::since(since));
        let reply = match reply {
            Ok(reply) => reply,
            Err(failed) => {
                return Answered { answer: Err(record.unanswered(failed)), predictions: None };
            }
        };
        if !reply.status().is_success() {
            return self.refused(reply, request.rows, appended, record);
        }
        let (head, body) = reply.into_parts();
        let Ok(body) = body.collect().await.map(|body| body.to_bytes());
        let (rows, labels, selective) = (request.rows, enlarged.labels, enlarged.selective);
        let kind = enlarged.kind;
        let (headers, output) = (head.headers.clone(), enlarged.output.clone());
        let cut = tokio::task::spawn_blocking(move || {
            let total = rows + appended;
            let asked = Asked { rows, total, labels, output: output.as_deref(), selective };
            format.cut(&headers, &body, asked)
        });
        let cut = cut.await.unwrap_or(Err(CutError::Form("cutting it failed")));
        match cut {
            Ok(Cut { body, json_length, predictions }) => {
                let predictions = predictions.and_then(|told| match told {
                    Told::Labels(told) => Predictions::of_labels(told, labels),
                    Told::Scores(told) => Predictions::of_scores(&told, labels, kind),
                });
                Answered { answer: Ok(rebuilt(head, body, json_length)), predictions }
            }
            Err(error) => {
                record.detail = Some(super::respond::shorten(error.to_string()));
                Answered { answer: Err(Failure::Uncut(error)), predictions: None }
            }
        }
    }

    /// The answer of an upstream that wants none of it goes to the client as it is, with the number
    /// of rows that it did not know of.
    fn refused(
        &self,
        mut reply: Response<Full<Bytes>>,
        rows: usize,
        appended: usize,
        record: &mut Record,
    ) -> Answered {
        let status = reply.status();
        record.detail =
            Some(format!("the upstream answered {status} to {rows} rows and {appended} copies"));
        tracing::warn!(
            request_id = record.request_id(),
            %status, rows, copies = appended,
            "the upstream refused a request with its perturbed copies"
        );
        reply.headers_mut().insert(APPENDED_ROWS, HeaderValue::from(appended));
        Answered { answer: Ok(reply), predictions: None }
    }

    /// By the upstream's predictions or, without any, by the local ones.
    async fn conclude(
        &self,
        request: &Understood,
        enlarged: Enlarged,
        predictions: Option<Predictions>,
    ) -> Result<Vec<Judgement>, Unverified> {
        let (rows, values) = (request.rows, Arc::clone(&request.inputs.values));
        let Some(predictions) = predictions else {
            self.metrics.remote_rows(RemoteRows::Untold, rows);
            return self.screen.ask(rows, move |judge| judge.judge(&values)).await;
        };
        let concluded = self.screen.ask(rows, move |judge| match judge.remote() {
            Some(remote) => remote.conclude(&values, &enlarged.copies, &predictions),
            None => Ok(Concluded { judgements: judge.judge(&values)?, disagreements: 0 }),
        });
        let Concluded { judgements, disagreements } = concluded.await?;
        self.metrics.remote_rows(RemoteRows::Disputed, disagreements);
        self.metrics.remote_rows(RemoteRows::Judged, rows - disagreements.min(rows));
        Ok(judgements)
    }
}

/// The upstream's answer with another body.
fn rebuilt(mut head: response::Parts, body: Bytes, json_length: Option<usize>) -> Answer {
    let headers: &mut HeaderMap = &mut head.headers;
    headers.remove(CONTENT_LENGTH);
    if let Some(length) = json_length {
        headers.insert(binary::JSON_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, Full::new(body))
}
