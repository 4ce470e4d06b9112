//! Reads a GGUF file: named values, and tensors that are F32, Q4_1 or Q8_0, as f32.
//!
//! `Gguf::parse` walks over the whole header once and checks every length, so that a damaged file is an error and never a
//! panic. It makes no lists whose length only the file tells: values are decoded when they are asked for.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use half::f16;

pub struct Gguf {
    bytes: Vec<u8>,
    values: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

/// A value of the header: its type number, and where it lies in the file.
struct Value {
    kind: u32,
    at: Range<usize>,
}

struct TensorInfo {
    /// The last dimension is contiguous. (The file has them the other way round.)
    shape: Vec<usize>,
    kind: TensorKind,
    /// Where the elements lie in the file.
    at: Range<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum TensorKind {
    F32,
    Q4_1,
    Q8_0,
}

impl TensorKind {
    fn of(number: u32) -> Result<Self> {
        Ok(match number {
            0 => Self::F32,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            other => bail!("tensor type {other} is not one of F32 (0), Q4_1 (3) and Q8_0 (8)"),
        })
    }

    /// Elements of a block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Q4_1 => (32, 20),
            Self::Q8_0 => (32, 34),
        }
    }
}

const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;

impl Gguf {
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let mut reader = Reader { bytes: &bytes, at: 0 };
        ensure!(reader.take(4)? == b"GGUF", "not a GGUF file: it does not start with \"GGUF\"");
        let version = reader.u32()?;
        ensure!(version == 2 || version == 3, "GGUF version {version} is not 2 or 3");
        let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);

        let mut values = HashMap::new();
        for _ in 0..value_count {
            let name = reader.string()?.to_owned();
            let value = reader.value().with_context(|| format!("value {name}"))?;
            ensure!(values.insert(name.clone(), value).is_none(), "two values have the name {name}");
        }

        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            let name = reader.string()?.to_owned();
            let info = reader.tensor_info().with_context(|| format!("tensor {name}"))?;
            infos.push((name, info));
        }
        let header_end = reader.at;

        let mut file = Self { bytes, values, tensors: HashMap::new() };
        let alignment =
            if file.values.contains_key("general.alignment") { file.number("general.alignment")? } else { 32 };
        ensure!(alignment > 0, "general.alignment is 0");
        let start = header_end.checked_next_multiple_of(alignment).context("general.alignment is too large")?;
        for (name, (shape, kind, offset)) in infos {
            let (elements, bytes) = kind.block();
            let end_of = || {
                let count = shape.iter().try_fold(1_usize, |count, &side| count.checked_mul(side))?;
                let first = start.checked_add(usize::try_from(offset).ok()?)?;
                let end = first.checked_add((count / elements).checked_mul(bytes)?)?;
                (end <= file.bytes.len()).then_some(first..end)
            };
            let at = end_of().with_context(|| format!("tensor {name} of shape {shape:?} lies outside the file"))?;
            let unbroken = shape.last().is_none_or(|side| side % elements == 0);
            ensure!(unbroken, "tensor {name}: rows of {shape:?} are not whole blocks of {elements} elements");
            let old = file.tensors.insert(name.clone(), TensorInfo { shape, kind, at });
            ensure!(old.is_none(), "two tensors have the name {name}");
        }
        Ok(file)
    }

    /// A whole number of the header.
    pub fn number(&self, name: &str) -> Result<usize> {
        let value = self.value(name)?;
        let bytes = &self.bytes[value.at.clone()];
        let number = match value.kind {
            UINT32 => u64::from(u32::from_le_bytes(bytes.try_into()?)),
            UINT64 => u64::from_le_bytes(bytes.try_into()?),
            INT32 => i32::from_le_bytes(bytes.try_into()?).try_into().with_context(|| format!("value {name}"))?,
            kind => bail!("value {name} has type {kind}, not that of a whole number"),
        };
        usize::try_from(number).with_context(|| format!("value {name} is {number}"))
    }

    pub fn float(&self, name: &str) -> Result<f32> {
        let value = self.value(name)?;
        ensure!(value.kind == FLOAT32, "value {name} has type {}, not f32 ({FLOAT32})", value.kind);
        Ok(f32::from_le_bytes(self.bytes[value.at.clone()].try_into()?))
    }

    pub fn string(&self, name: &str) -> Result<&str> {
        let value = self.value(name)?;
        ensure!(value.kind == STRING, "value {name} has type {}, not string ({STRING})", value.kind);
        Reader { bytes: &self.bytes, at: value.at.start }.string()
    }

    /// A list of strings.
    pub fn strings(&self, name: &str) -> Result<Vec<&str>> {
        let (mut reader, count) = self.list(name, STRING)?;
        (0..count).map(|_| reader.string()).collect()
    }

    /// A list of i32.
    pub fn integers(&self, name: &str) -> Result<Vec<i32>> {
        let (mut reader, count) = self.list(name, INT32)?;
        (0..count).map(|_| Ok(reader.u32()? as i32)).collect()
    }

    /// The elements of a tensor that must have this shape, in f32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.tensors.get(name).with_context(|| format!("the file has no tensor {name}"))?;
        ensure!(info.shape == shape, "tensor {name} has shape {:?}; the model needs {shape:?}", info.shape);
        let blocks = self.bytes[info.at.clone()].chunks_exact(info.kind.block().1);
        let half = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        Ok(match info.kind {
            TensorKind::F32 => blocks.map(|element| f32::from_le_bytes(element.try_into().unwrap())).collect(),
            // A scale, a minimum, and 32 numbers of four bits: the low halves of all bytes, then the high halves.
            TensorKind::Q4_1 => {
                let decoded = blocks.flat_map(|block| {
                    let (scale, minimum) = (half(block, 0), half(block, 2));
                    let low = block[4..].iter().map(|byte| byte & 15);
                    let high = block[4..].iter().map(|byte| byte >> 4);
                    low.chain(high).map(move |number| f32::from(number) * scale + minimum)
                });
                decoded.collect()
            }
            // A scale, and 32 signed bytes.
            TensorKind::Q8_0 => {
                let decoded = blocks.flat_map(|block| {
                    let scale = half(block, 0);
                    block[2..].iter().map(move |&byte| f32::from(byte as i8) * scale)
                });
                decoded.collect()
            }
        })
    }

    fn value(&self, name: &str) -> Result<&Value> {
        self.values.get(name).with_context(|| format!("the file has no value {name}"))
    }

    fn list(&self, name: &str, kind: u32) -> Result<(Reader<'_>, u64)> {
        let value = self.value(name)?;
        ensure!(value.kind == ARRAY, "value {name} has type {}, not list ({ARRAY})", value.kind);
        let mut reader = Reader { bytes: &self.bytes, at: value.at.start };
        let (of, count) = (reader.u32()?, reader.u64()?);
        ensure!(of == kind, "value {name} is a list of type {of}, not {kind}");
        Ok((reader, count))
    }
}

/// A place in the file, from which everything is little-endian.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).with_context(|| format!("the file ends at byte {}", self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into()?))
    }

    fn string(&mut self) -> Result<&'a str> {
        let length = usize::try_from(self.u64()?)?;
        Ok(std::str::from_utf8(self.take(length)?)?)
    }

    /// Passes over a value.
    fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        let start = self.at;
        if kind == ARRAY {
            let of = self.u32()?;
            let count = self.u64()?;
            if of == STRING {
                for _ in 0..count {
                    self.string()?;
                }
            } else {
                let bytes = usize::try_from(count)?.checked_mul(size_of_kind(of)?);
                self.take(bytes.context("a list is longer than the file")?)?;
            }
        } else if kind == STRING {
            self.string()?;
        } else {
            self.take(size_of_kind(kind)?)?;
        }
        Ok(Value { kind, at: start..self.at })
    }

    /// Shape, type, and where it starts after the header.
    fn tensor_info(&mut self) -> Result<(Vec<usize>, TensorKind, u64)> {
        let rank = self.u32()?;
        ensure!(rank <= 4, "{rank} dimensions are more than GGUF allows (4)");
        let mut shape = (0..rank).map(|_| Ok(usize::try_from(self.u64()?)?)).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        Ok((shape, TensorKind::of(self.u32()?)?, self.u64()?))
    }
}

/// Bytes of a plain value. A list of lists is refused: no model that we read has one.
fn size_of_kind(kind: u32) -> Result<usize> {
    Ok(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        UINT32 | INT32 | FLOAT32 => 4,
        UINT64 | 11 | 12 => 8,
        other => bail!("value type {other} is unknown here"),
    })
}
