//! The protobuf messages of an ONNX file, read in place.
//!
//! Names and raw data stay slices of the file, and of what this program has no use for (training,
//! documentation) nothing is read at all. So memory is bounded by the file's size, where
//! a general decoder turns two bytes into a message of hundreds; and nesting costs no stack.
//! Numbers of fields are those of `onnx.proto3`.

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wire<'a> {
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
    Fixed64([u8; 8]),
    Varint(u64),
}

/// The fields of a message, in the order of the file.
pub(super) struct Fields<'a> {
    message: &'static str,
    len: usize,
    rest: &'a [u8],
}

#[derive(Debug, Default)]
pub(super) struct ModelProto<'a> {
    pub(super) graph: Option<&'a [u8]>,
    /// Version of the default operator set.
    pub(super) opset: Option<i64>,
    pub(super) functions: Vec<FunctionProto<'a>>,
}

/// An operator that the file itself defines by others.
#[derive(Debug, Default)]
pub(super) struct FunctionProto<'a> {
    pub(super) name: &'a str,
    pub(super) domain: &'a str,
    pub(super) overload: &'a str,
    pub(super) input: Vec<&'a str>,
    pub(super) output: Vec<&'a str>,
    /// For [`NodeProto::read`].
    pub(super) nodes: Vec<&'a [u8]>,
    /// Defaults of its attributes, for [`AttributeProto::read`].
    pub(super) attributes: Vec<&'a [u8]>,
    /// Version of the default operator set inside of it.
    pub(super) opset: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct NodeProto {
    pub(super) name: String,
    pub(super) op_type: String,
    pub(super) domain: String,
    pub(super) overload: String,
    pub(super) input: Vec<String>,
    pub(super) output: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct AttributeProto<'a> {
    pub(super) name: &'a str,
    pub(super) r#type: i32,
    pub(super) f: f32,
    pub(super) i: i64,
    pub(super) s: &'a [u8],
    pub(super) t: Option<TensorProto<'a>>,
    /// A graph, for [`Fields`].
    pub(super) g: Option<&'a [u8]>,
    /// The attribute of the calling node whose value this one has, inside of a function.
    pub(super) reference: &'a str,
    pub(super) floats: Vec<f32>,
    pub(super) ints: Vec<i64>,
}

#[derive(Debug, Default)]
pub(super) struct TensorProto<'a> {
    pub(super) dims: Vec<i64>,
    pub(super) data_type: i32,
    pub(super) name: &'a str,
    pub(super) raw_data: &'a [u8],
    pub(super) float_data: Vec<f32>,
    pub(super) double_data: Vec<f64>,
    pub(super) int32_data: Vec<i32>,
    pub(super) int64_data: Vec<i64>,
    pub(super) uint64_data: Vec<u64>,
    pub(super) external: bool,
    /// Keys and values.
    pub(super) external_data: Vec<(&'a str, &'a str)>,
}

// === impl Fields ===

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'static str, bytes: &'a [u8]) -> Self {
        Self { message, len: bytes.len(), rest: bytes }
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), &'static str> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&number| number > 0);
        let number = number.ok_or("a field's number is 0 or too large")?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(*self.rest.split_off_chunk().ok_or(ENDS)?),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| ENDS)?;
                Wire::Bytes(self.rest.split_off(..len).ok_or(ENDS)?)
            }
            5 => Wire::Fixed32(*self.rest.split_off_chunk().ok_or(ENDS)?),
            _ => return Err("a field is a group or of an unknown type"),
        };
        Ok((number, value))
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let &byte = self.rest.split_off_first().ok_or(ENDS)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number is longer than 64 bits")
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.len - self.rest.len();
        Some(self.field().map_err(|reason| {
            self.rest = &[];
            format!("{} at its byte {at}: {reason}", self.message)
        }))
    }
}

/// `slice::split_off` for an array.
trait SplitOffChunk<'a> {
    fn split_off_chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]>;
}

impl<'a> SplitOffChunk<'a> for &'a [u8] {
    fn split_off_chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.split_first_chunk()?;
        *self = rest;
        Some(chunk)
    }
}

// === impl Wire ===

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(other.unexpected("bytes")),
        }
    }

    /// A name, or the like.
    pub(super) fn text(self) -> Result<&'a str, String> {
        let bytes = self.bytes()?;
        if bytes.len() > MAX_NAME {
            let start = String::from_utf8_lossy(&bytes[..32]);
            return Err(format!(
                "a name that starts with {start:?} has {} bytes, expected up to {MAX_NAME}",
                bytes.len()
            ));
        }
        std::str::from_utf8(bytes)
            .map_err(|_| format!("{:?} is not UTF-8", String::from_utf8_lossy(bytes)))
    }

    fn number(self) -> Result<i64, String> {
        match self {
            Self::Varint(value) => Ok(value as i64),
            other => Err(other.unexpected("an integer")),
        }
    }

    fn small(self) -> Result<i32, String> {
        Ok(self.number()? as i32)
    }

    fn float(self) -> Result<f32, String> {
        match self {
            Self::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            other => Err(other.unexpected("a float")),
        }
    }

    /// One number, or many in one field.
    fn numbers<T>(self, into: &mut Vec<T>, read: impl Fn(u64) -> T) -> Result<(), String> {
        match self {
            Self::Varint(value) => into.push(read(value)),
            Self::Bytes(packed) => {
                let mut packed = Fields::of("packed integers", packed);
                while !packed.rest.is_empty() {
                    into.push(read(packed.varint()?));
                }
            }
            other => return Err(other.unexpected("integers")),
        }
        Ok(())
    }

    fn floats(self, into: &mut Vec<f32>) -> Result<(), String> {
        match self {
            Self::Fixed32(bytes) => into.push(f32::from_le_bytes(bytes)),
            Self::Bytes(packed) => into.extend(little_endian(packed, f32::from_le_bytes)?),
            other => return Err(other.unexpected("floats")),
        }
        Ok(())
    }

    fn doubles(self, into: &mut Vec<f64>) -> Result<(), String> {
        match self {
            Self::Fixed64(bytes) => into.push(f64::from_le_bytes(bytes)),
            Self::Bytes(packed) => into.extend(little_endian(packed, f64::from_le_bytes)?),
            other => return Err(other.unexpected("floats")),
        }
        Ok(())
    }

    fn unexpected(self, expected: &str) -> String {
        let got = match self {
            Self::Bytes(_) => "bytes",
            Self::Fixed32(_) => "32 bits",
            Self::Fixed64(_) => "64 bits",
            Self::Varint(_) => "an integer",
        };
        format!("a field holds {got}, expected {expected}")
    }
}

/// Values of a fixed size, without copying what they are read from.
pub(super) fn little_endian<const N: usize, T>(
    raw: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> Result<impl ExactSizeIterator<Item = T>, String> {
    match raw.as_chunks::<N>() {
        (chunks, []) => Ok(chunks.iter().map(move |bytes| read(*bytes))),
        _ => Err(format!("{} bytes of data are no multiple of {N}", raw.len())),
    }
}

// === impl ModelProto ===

impl<'a> ModelProto<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut model = Self::default();
        for field in Fields::of("ModelProto", bytes) {
            match field? {
                (7, graph) => once(&mut model.graph, graph.bytes()?, "graph")?,
                (8, import) => default_opset(&mut model.opset, import.bytes()?)?,
                (25, function) => model.functions.push(FunctionProto::read(function.bytes()?)?),
                _ => {}
            }
            if model.functions.len() > MAX_FUNCTIONS {
                return Err(format!("it has more than {MAX_FUNCTIONS} functions"));
            }
        }
        Ok(model)
    }
}

/// Reads an import of an operator set, if it is that of the default operators.
fn default_opset(opset: &mut Option<i64>, import: &[u8]) -> Result<(), String> {
    let (mut domain, mut version) = ("", 0);
    for field in Fields::of("OperatorSetIdProto", import) {
        match field? {
            (1, name) => domain = name.text()?,
            (2, number) => version = number.number()?,
            _ => {}
        }
    }
    match is_default(domain) {
        true => once(opset, version, "default operator set"),
        false => Ok(()),
    }
}

// === impl FunctionProto ===

impl<'a> FunctionProto<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut function = Self::default();
        for field in Fields::of("FunctionProto", bytes) {
            match field? {
                (1, name) => function.name = name.text()?,
                (4, name) => function.input.push(name.text()?),
                (5, name) => function.output.push(name.text()?),
                (7, node) => function.nodes.push(node.bytes()?),
                (9, import) => default_opset(&mut function.opset, import.bytes()?)?,
                (10, domain) => function.domain = domain.text()?,
                (11, attribute) => function.attributes.push(attribute.bytes()?),
                (13, overload) => function.overload = overload.text()?,
                _ => {}
            }
        }
        Ok(function)
    }
}

/// True if a domain is that of ONNX's own operators.
pub(super) fn is_default(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// The name of a ValueInfoProto.
pub(super) fn value_name(bytes: &[u8]) -> Result<&str, String> {
    let mut name = "";
    for field in Fields::of("ValueInfoProto", bytes) {
        if let (1, own) = field? {
            name = own.text()?;
        }
    }
    Ok(name)
}

// === impl NodeProto ===

impl NodeProto {
    /// The node, and its attributes for [`AttributeProto::read`].
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, Vec<&[u8]>), String> {
        let (mut node, mut attributes) = (Self::default(), Vec::new());
        for field in Fields::of("NodeProto", bytes) {
            match field? {
                (1, name) => node.input.push(name.text()?.to_owned()),
                (2, name) => node.output.push(name.text()?.to_owned()),
                (3, name) => node.name = name.text()?.to_owned(),
                (4, name) => node.op_type = name.text()?.to_owned(),
                (5, attribute) => attributes.push(attribute.bytes()?),
                (7, name) => node.domain = name.text()?.to_owned(),
                (8, name) => node.overload = name.text()?.to_owned(),
                _ => {}
            }
            let most = node.input.len().max(node.output.len());
            if most > MAX_EDGES || attributes.len() > MAX_ATTRIBUTES {
                return Err(format!(
                    "node {:?} has more than {MAX_EDGES} inputs or outputs, or more than \
                     {MAX_ATTRIBUTES} attributes",
                    node.name
                ));
            }
        }
        Ok((node, attributes))
    }
}

// === impl AttributeProto ===

impl<'a> AttributeProto<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut attribute = Self::default();
        for field in Fields::of("AttributeProto", bytes) {
            match field? {
                (1, name) => attribute.name = name.text()?,
                (2, value) => attribute.f = value.float()?,
                (3, value) => attribute.i = value.number()?,
                (4, value) => attribute.s = value.bytes()?,
                (5, value) => {
                    once(&mut attribute.t, TensorProto::read(value.bytes()?)?, "tensor")?;
                }
                (6, graph) => once(&mut attribute.g, graph.bytes()?, "graph")?,
                (7, values) => values.floats(&mut attribute.floats)?,
                (8, values) => values.numbers(&mut attribute.ints, |value| value as i64)?,
                (20, kind) => attribute.r#type = kind.small()?,
                (21, name) => attribute.reference = name.text()?,
                _ => {}
            }
        }
        Ok(attribute)
    }
}

// === impl TensorProto ===

impl<'a> TensorProto<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut tensor = Self::default();
        for field in Fields::of("TensorProto", bytes) {
            match field? {
                (1, dims) => dims.numbers(&mut tensor.dims, |dim| dim as i64)?,
                (2, kind) => tensor.data_type = kind.small()?,
                (3, _) => return Err("a segment of a tensor is not supported".into()),
                (4, values) => values.floats(&mut tensor.float_data)?,
                (5, values) => values.numbers(&mut tensor.int32_data, |value| value as i32)?,
                (7, values) => values.numbers(&mut tensor.int64_data, |value| value as i64)?,
                (8, name) => tensor.name = name.text()?,
                (9, raw) => tensor.raw_data = raw.bytes()?,
                (10, values) => values.doubles(&mut tensor.double_data)?,
                (11, values) => values.numbers(&mut tensor.uint64_data, |value| value)?,
                (13, entry) => {
                    let (mut key, mut value) = ("", "");
                    for field in Fields::of("StringStringEntryProto", entry.bytes()?) {
                        match field? {
                            (1, text) => key = text.text()?,
                            (2, text) => value = text.text()?,
                            _ => {}
                        }
                    }
                    tensor.external_data.push((key, value));
                }
                (14, location) => match location.number()? {
                    0 => tensor.external = false,
                    1 => tensor.external = true,
                    other => {
                        return Err(format!("its data's location is {other}, expected 0 or 1"));
                    }
                },
                _ => {}
            }
            if tensor.dims.len() > MAX_RANK || tensor.external_data.len() > MAX_ENTRIES {
                return Err(format!(
                    "tensor {:?} has more than {MAX_RANK} axes or {MAX_ENTRIES} keys",
                    tensor.name
                ));
            }
        }
        Ok(tensor)
    }
}

/// Sets what protobuf would merge with, or replace by, its second occurrence.
fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("it has more than one {what}")),
    }
}

const ENDS: &str = "it ends too early";

/// The longest names of exporters, which hold the path of a module, have some hundred bytes.
const MAX_NAME: usize = 1 << 12;

/// Most inputs, or outputs, of one node.
const MAX_EDGES: usize = 1 << 12;

/// ONNX's own operators have up to 15.
const MAX_ATTRIBUTES: usize = 64;

/// The new exporter of PyTorch writes some hundred, one for each kind of module.
const MAX_FUNCTIONS: usize = 1 << 12;

/// ONNX defines four.
const MAX_ENTRIES: usize = 16;

/// Most axes of a tensor: as many as NumPy has.
pub(crate) const MAX_RANK: usize = 64;
