//! Baseline JPEG (ITU-T T.81), decoded as libjpeg-turbo does, bit for bit, or refused.
//!
//! Refused are what decoders read differently: colours other than grey and YCbCr, sampling other
//! than that of cameras and the web, tables that are missing or come twice, several scans, restart
//! markers that do not count up, and whatever breaks a rule. Progressive images are refused for
//! their many ways to be incomplete.

use super::colour::{Plane, to_rgb};
use super::huffman::{Bits, Class, Table};
use super::{EncodedError, Header, Kind, Result, dct, orientation};

/// An image's parts.
pub(super) struct Jpeg<'a> {
    pub(super) header: Header,
    components: Vec<Component>,
    quantisation: [Option<[i32; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart_interval: Option<usize>,
    /// The transform that Adobe's segment names.
    adobe: Option<u8>,
    orientation: Option<u8>,
    /// The data behind the scan's header.
    data: &'a [u8],
}

/// One channel.
struct Component {
    id: u8,
    /// Blocks of a unit, across and down.
    sampling: [usize; 2],
    quantisation: usize,
    /// The number of coefficient tables.
    dc: usize,
    ac: usize,
}

/// Reads an image's structure. `turns`: whether orientation counts.
pub(super) fn check(bytes: &[u8], turns: bool) -> Result<Jpeg<'_>> {
    let mut jpeg = Jpeg {
        header: Header { width: 0, height: 0, orientation: 1 },
        components: Vec::new(),
        quantisation: [None; 4],
        dc: [const { None }; 4],
        ac: [const { None }; 4],
        restart_interval: None,
        adobe: None,
        orientation: None,
        data: &[],
    };
    let mut at = 2;
    loop {
        let (marker, length) = match bytes.get(at..at + 4) {
            Some(&[0xff, marker @ 0xc0..=0xfe, high, low]) => {
                (marker, usize::from(u16::from_be_bytes([high, low])))
            }
            Some(_) => return Err(damaged(&format!("there is no segment at byte {at}"))),
            None => return Err(damaged("it ends before its data")),
        };
        let Some([_, _, content @ ..]) = bytes.get(at + 2..at + 2 + length) else {
            return Err(damaged("a segment is longer than what is left, or than it says"));
        };
        at += 2 + length;
        if marker == SCAN {
            jpeg.begin_scan(content)?;
            break;
        }
        jpeg.take(marker, content, turns)?;
    }
    let length = coded_length(&bytes[at..])?;
    jpeg.data = &bytes[at..at + length];
    match &bytes[at + length..] {
        [0xff, END] => {}
        [0xff, END, rest @ ..] => {
            return Err(EncodedError::Trailing { kind: Kind::Jpeg, bytes: rest.len() });
        }
        _ => return Err(Kind::Jpeg.unsupported("more than one scan", "one")),
    }
    jpeg.header.orientation = jpeg.orientation.unwrap_or(1);
    Ok(jpeg)
}

// === impl Jpeg ===

impl Jpeg<'_> {
    /// 1 or 3.
    pub(super) fn channels(&self) -> usize {
        self.components.len()
    }

    /// Its pixels, channels interleaved.
    pub(super) fn decode(&self) -> Result<Vec<u8>> {
        let Header { width, height, .. } = self.header;
        let planes = self.planes()?;
        let mut pixels = Vec::with_capacity(width * height * self.channels());
        let mut rows = [const { Vec::new() }; 3];
        for row in 0..height {
            for (plane, pixels) in planes.iter().zip(&mut rows) {
                plane.row(row, width, pixels);
            }
            match self.channels() {
                1 => pixels.extend_from_slice(&rows[0]),
                _ => to_rgb(std::array::from_fn(|channel| rows[channel].as_slice()), &mut pixels),
            }
        }
        Ok(pixels)
    }

    fn take(&mut self, marker: u8, content: &[u8], turns: bool) -> Result<()> {
        match marker {
            BASELINE | EXTENDED => self.begin_frame(content)?,
            HUFFMAN_TABLES => self.code_tables(content)?,
            0xc2 => return Err(Kind::Jpeg.unsupported("progressive scans", "one baseline scan")),
            0xc3..=0xcf => {
                let what = "an arithmetic, lossless or hierarchical coding";
                return Err(Kind::Jpeg.unsupported(what, "baseline"));
            }
            QUANTISATION_TABLES => self.quantisation_tables(content)?,
            RESTART_INTERVAL => match (content, self.restart_interval) {
                (&[high, low], None) => {
                    self.restart_interval = Some(u16::from_be_bytes([high, low]).into());
                }
                _ => return Err(damaged("it has two restart intervals, or an odd one")),
            },
            APP1 if turns => self.orient(content)?,
            ADOBE => {
                if let Some(rest) = content.strip_prefix(b"Adobe") {
                    let transform =
                        rest.get(6).ok_or_else(|| damaged("Adobe's segment is short"))?;
                    if self.adobe.replace(*transform).is_some() {
                        return Err(damaged("it has two of Adobe's segments"));
                    }
                }
            }
            0xe0..=0xef | COMMENT => {}
            _ => {
                return Err(Kind::Jpeg.unsupported(format!("a segment {marker:#04x}"), "none such"));
            }
        }
        Ok(())
    }

    fn begin_frame(&mut self, header: &[u8]) -> Result<()> {
        if !self.components.is_empty() {
            return Err(damaged("it has two frames"));
        }
        let [precision, a, b, c, d, count, rest @ ..] = header else {
            return Err(damaged("its frame header is short"));
        };
        if *precision != 8 {
            return Err(Kind::Jpeg.unsupported(format!("{precision} bits a sample"), "8"));
        }
        let height = usize::from(u16::from_be_bytes([*a, *b]));
        let width = usize::from(u16::from_be_bytes([*c, *d]));
        if width == 0 || height == 0 {
            return Err(damaged(&format!("its size is {width} x {height}")));
        }
        if *count != 1 && *count != 3 {
            return Err(Kind::Jpeg.unsupported(format!("{count} channels"), "grey or YCbCr"));
        }
        let (parts, left) = rest.as_chunks::<3>();
        if parts.len() != usize::from(*count) || !left.is_empty() {
            return Err(damaged("its frame header does not fit its channels"));
        }
        let component = |&[id, sampling, quantisation]: &[u8; 3]| Component {
            id,
            sampling: [usize::from(sampling >> 4), usize::from(sampling & 15)],
            quantisation: quantisation.into(),
            dc: 0,
            ac: 0,
        };
        self.components = parts.iter().map(component).collect();
        let sampling: Vec<_> = self.components.iter().map(|part| part.sampling).collect();
        if !matches!(*sampling, [[1, 1]] | [[1, 1] | [2, 1] | [2, 2], [1, 1], [1, 1]]) {
            let what = format!("its channels sampled {sampling:?}");
            return Err(Kind::Jpeg.unsupported(what, "4:4:4, 4:2:2 or 4:2:0"));
        }
        let ids: Vec<u8> = self.components.iter().map(|part| part.id).collect();
        if ids.len() == 3 && ids != [1, 2, 3] {
            return Err(Kind::Jpeg.unsupported(format!("channels called {ids:?}"), "[1, 2, 3]"));
        }
        self.header = Header { width, height, ..self.header };
        Ok(())
    }

    fn quantisation_tables(&mut self, mut content: &[u8]) -> Result<()> {
        while let [head, rest @ ..] = content {
            let Some(place) = self.quantisation.get_mut(usize::from(*head)) else {
                let what = format!("a quantisation table {head:#04x}");
                return Err(Kind::Jpeg.unsupported(what, "tables 0 to 3 of 8 bits"));
            };
            let (steps, rest) = rest
                .split_first_chunk::<64>()
                .ok_or_else(|| damaged("a quantisation table is short"))?;
            if place.replace(steps.map(i32::from)).is_some() {
                return Err(Kind::Jpeg.unsupported("a quantisation table twice", "it once"));
            }
            content = rest;
        }
        Ok(())
    }

    fn code_tables(&mut self, mut content: &[u8]) -> Result<()> {
        while let [head, rest @ ..] = content {
            let (class, tables) = match head >> 4 {
                0 => (Class::Dc, &mut self.dc),
                1 => (Class::Ac, &mut self.ac),
                _ => return Err(damaged("a Huffman table is for nothing")),
            };
            let place = tables.get_mut(usize::from(head & 15));
            let place = place.ok_or_else(|| damaged("a Huffman table has a number above 3"))?;
            let (table, rest) = Table::read(class, rest).map_err(damaged)?;
            if place.replace(table).is_some() {
                return Err(Kind::Jpeg.unsupported("a Huffman table twice", "it once"));
            }
            content = rest;
        }
        Ok(())
    }

    fn orient(&mut self, content: &[u8]) -> Result<()> {
        if let Some(exif) = content.strip_prefix(b"Exif\0\0") {
            let orientation = orientation::of_exif(exif).map_err(damaged)?;
            if self.orientation.replace(orientation).is_some() {
                return Err(Kind::Jpeg.unsupported("EXIF data twice", "it once"));
            }
        } else if orientation::in_xmp(content) {
            return Err(Kind::Jpeg.unsupported("an orientation in XMP", "it in EXIF"));
        }
        Ok(())
    }

    fn begin_scan(&mut self, header: &[u8]) -> Result<()> {
        let count = self.components.len();
        if count == 0 {
            return Err(damaged("it has no frame"));
        }
        if count == 3 && self.adobe.is_some_and(|transform| transform != 1) {
            return Err(Kind::Jpeg.unsupported("colours that are not YCbCr", "grey or YCbCr"));
        }
        let wrong = "its scan header does not fit its frame";
        let (Some((&[channels], rest)), true) =
            (header.split_first_chunk::<1>(), header.ends_with(&[0, 63, 0]))
        else {
            return Err(damaged(wrong));
        };
        if usize::from(channels) != count {
            return Err(Kind::Jpeg.unsupported(format!("a scan of {channels} channels"), "of all"));
        }
        let (names, _) = rest.as_chunks::<2>();
        if rest.len() != 2 * count + 3 {
            return Err(damaged(wrong));
        }
        for (component, &[id, tables]) in self.components.iter_mut().zip(names) {
            (component.dc, component.ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            let there = |tables: &[Option<Table>], number: usize| {
                tables.get(number).is_some_and(Option::is_some)
            };
            let quantised =
                self.quantisation.get(component.quantisation).is_some_and(Option::is_some);
            if id != component.id {
                return Err(damaged(wrong));
            }
            if !there(&self.dc, component.dc) || !there(&self.ac, component.ac) || !quantised {
                return Err(damaged("a table is missing"));
            }
        }
        Ok(())
    }

    fn planes(&self) -> Result<Vec<Plane>> {
        let Header { width, height, .. } = self.header;
        let most = self.components[0].sampling;
        let units = [width.div_ceil(8 * most[0]), height.div_ceil(8 * most[1])];
        let plane = |component: &Component| {
            let reach = [most[0] / component.sampling[0], most[1] / component.sampling[1]];
            let stride = units[0] * component.sampling[0] * 8;
            let samples = vec![0; stride * units[1] * component.sampling[1] * 8];
            let (width, height) = (width.div_ceil(reach[0]), height.div_ceil(reach[1]));
            Plane { stride, samples, width, height, reach }
        };
        let mut planes: Vec<Plane> = self.components.iter().map(plane).collect();
        let total = units[0] * units[1];
        let interval = self.restart_interval.filter(|&interval| interval > 0).unwrap_or(total);
        let mut stretches = stretches(self.data)?.into_iter();
        for first in (0..total).step_by(interval) {
            let bytes =
                stretches.next().ok_or_else(|| damaged("it has too few restart markers"))?;
            let mut bits = Bits::new(&bytes);
            let mut means = [0; 3];
            for unit in first..total.min(first + interval) {
                let corner = [unit % units[0], unit / units[0]];
                self.unit(corner, &mut bits, &mut means, &mut planes)?;
            }
            bits.end().map_err(damaged)?;
        }
        match stretches.next() {
            Some(_) => Err(damaged("it has too many restart markers")),
            None => Ok(planes),
        }
    }

    fn unit(
        &self,
        corner: [usize; 2],
        bits: &mut Bits<'_>,
        means: &mut [i32; 3],
        planes: &mut [Plane],
    ) -> Result<()> {
        for ((component, plane), mean) in self.components.iter().zip(planes).zip(means) {
            let missing = || damaged("a table is missing");
            let dc = self.dc[component.dc].as_ref().ok_or_else(missing)?;
            let ac = self.ac[component.ac].as_ref().ok_or_else(missing)?;
            let steps = self.quantisation[component.quantisation].as_ref().ok_or_else(missing)?;
            let [across, down] = component.sampling;
            for number in 0..across * down {
                let mut block = bits.block(dc, ac).map_err(damaged)?;
                *mean += block[0];
                if mean.abs() > MOST_MEAN {
                    return Err(damaged("a block's mean is none of a picture"));
                }
                block[0] = *mean;
                let mut coefficients = [0; 64];
                for ((value, step), &place) in block.iter().zip(steps).zip(&ZIGZAG) {
                    coefficients[usize::from(place)] = value * step;
                }
                let samples = dct::inverse(&coefficients)
                    .ok_or_else(|| damaged("a block's coefficients are none of a picture"))?;
                let left = (corner[0] * across + number % across) * 8;
                let top = (corner[1] * down + number / across) * 8;
                for (row, samples) in samples.as_chunks::<8>().0.iter().enumerate() {
                    let start = (top + row) * plane.stride + left;
                    plane.samples[start..start + 8].copy_from_slice(samples);
                }
            }
        }
        Ok(())
    }
}

/// The length of entropy-coded data, restart markers included.
fn coded_length(data: &[u8]) -> Result<usize> {
    let ends = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7);
    data.windows(2).position(ends).ok_or_else(|| damaged("it ends before its end marker"))
}

/// The data between restart markers, which have to count up, without the zeros behind 0xff.
fn stretches(data: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut stretches = Vec::new();
    let mut current = Vec::new();
    let mut bytes = data.iter();
    while let Some(&byte) = bytes.next() {
        if byte != 0xff {
            current.push(byte);
            continue;
        }
        match bytes.next() {
            Some(0) => current.push(byte),
            Some(&marker) if usize::from(marker) == 0xd0 + stretches.len() % 8 => {
                stretches.push(std::mem::take(&mut current));
            }
            _ => return Err(damaged("its restart markers do not count up")),
        }
    }
    stretches.push(current);
    Ok(stretches)
}

fn damaged(reason: &str) -> EncodedError {
    Kind::Jpeg.damaged(reason.to_owned())
}

/// The place of a coefficient in its block, by its place in the data.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The largest coefficient of eight-bit samples, quantised with a step of 1.
const MOST_MEAN: i32 = 2_047;

const ADOBE: u8 = 0xee;
const APP1: u8 = 0xe1;
const BASELINE: u8 = 0xc0;
const COMMENT: u8 = 0xfe;
const END: u8 = 0xd9;
const EXTENDED: u8 = 0xc1;
const HUFFMAN_TABLES: u8 = 0xc4;
const QUANTISATION_TABLES: u8 = 0xdb;
const RESTART_INTERVAL: u8 = 0xdd;
const SCAN: u8 = 0xda;
