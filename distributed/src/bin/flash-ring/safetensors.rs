//! safetensors files, of which each rank reads and writes its own rows: eight bytes that say how long the header is, the header
//! in JSON, and the tensors.

use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

/// A longer header is no header.
const LONGEST_HEADER: u64 = 100 << 20;

/// A file that is read.
pub struct Source {
    file: File,
    header: Map<String, Value>,
    /// Where the tensors begin, and the length of the file.
    data: Range<u64>,
}

/// A tensor of a file.
pub struct Tensor {
    /// `F32`, `F16` or `BF16`, and others.
    pub dtype: String,
    pub shape: Vec<u64>,
    /// Its bytes in the file.
    bytes: Range<u64>,
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
}

impl Source {
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut count = [0; 8];
        file.read_exact(&mut count)?;
        let count = u64::from_le_bytes(count);
        if count > LONGEST_HEADER || count > length - 8 {
            return Err(wrong("it is no safetensors file: its header is longer than the file"));
        }
        let mut header = vec![0; count as usize];
        file.read_exact(&mut header)?;
        let header: Value = serde_json::from_slice(&header).map_err(|error| wrong(format!("its header: {error}")))?;
        let Value::Object(header) = header else { return Err(wrong("its header is no object")) };
        Ok(Self { file, header, data: 8 + count..length })
    }

    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.header.get(name).ok_or_else(|| wrong(format!("it has no tensor {name}")))?;
        let numbers = |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
        let read = || {
            let offsets = numbers(&entry["data_offsets"])?;
            let [first, end] = offsets[..] else { return None };
            let bytes = self.data.start.checked_add(first)?..self.data.start.checked_add(end)?;
            let fits = bytes.start <= bytes.end && bytes.end <= self.data.end;
            let dtype = entry["dtype"].as_str()?.to_owned();
            fits.then_some(Tensor { dtype, shape: numbers(&entry["shape"])?, bytes })
        };
        read().ok_or_else(|| wrong(format!("tensor {name}: its entry in the header is not sound")))
    }

    /// Some bytes of a tensor.
    pub fn read(&mut self, tensor: &Tensor, bytes: Range<u64>) -> Result<Vec<u8>> {
        if bytes.start > bytes.end || bytes.end > tensor.bytes.end - tensor.bytes.start {
            return Err(wrong("a tensor is shorter than its shape says"));
        }
        let mut read = vec![0; (bytes.end - bytes.start) as usize];
        self.file.seek(SeekFrom::Start(tensor.bytes.start + bytes.start))?;
        self.file.read_exact(&mut read)?;
        Ok(read)
    }
}

/// A file that is written under another name, until all of it is there.
pub struct Target {
    data: u64,
    tensors: Vec<u64>,
}

impl Target {
    /// The layout of a file with these tensors, and its header.
    pub fn new(tensors: &[(&str, &str, Vec<u64>, u64)]) -> (Self, Vec<u8>) {
        let (mut header, mut at, mut firsts) = (Map::new(), 0, Vec::new());
        for (name, dtype, shape, bytes) in tensors {
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes]});
            header.insert((*name).to_owned(), entry);
            firsts.push(at);
            at += bytes;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        let data = bytes.len() as u64;
        (Self { data, tensors: firsts.into_iter().chain([at]).collect() }, bytes)
    }

    /// Makes the file, with its header and its whole length.
    pub fn create(&self, path: &Path, header: &[u8]) -> Result<()> {
        let mut file = File::create(path)?;
        file.write_all(header)?;
        file.set_len(self.data + self.tensors.last().copied().unwrap_or(0))
    }

    /// Writes bytes of a tensor.
    pub fn write(&self, file: &mut File, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        file.seek(SeekFrom::Start(self.data + self.tensors[tensor] + offset))?;
        file.write_all(bytes)
    }
}

/// The file that a rank writes its rows to.
pub fn reopen(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path)
}
