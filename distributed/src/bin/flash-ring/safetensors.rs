//! safetensors files, of which each rank reads and writes its own rows: eight bytes that say how long the header is, the header in
//! JSON, and the tensors.

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::fs::{File, metadata};
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes that say how long the header is.
const LENGTH: u64 = 8;

/// The longest header, as the crate safetensors has it.
const LONGEST: u64 = 100_000_000;

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// A file that is read at positions. It may be cut shorter meanwhile: then reading fails.
pub struct Source {
    file: File,
    data: u64,
    metadata: Metadata,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self> {
        // Opening a pipe would wait for whoever writes to it.
        if !metadata(path)?.is_file() {
            return Err(wrong("it is no regular file"));
        }
        let mut file = File::open(path)?;
        let found = file.metadata()?.len();
        let mut length = [0; LENGTH as usize];
        read(&mut file, &mut length, SafeTensorError::HeaderTooSmall)?;
        let header = u64::from_le_bytes(length);
        if header > LONGEST {
            return Err(unsound(SafeTensorError::HeaderTooLarge));
        }
        if header > found.saturating_sub(LENGTH) {
            return Err(unsound(SafeTensorError::InvalidHeaderLength));
        }
        let mut text = vec![0; header as usize];
        read(&mut file, &mut text, SafeTensorError::InvalidHeaderLength)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|error| unsound(SafeTensorError::InvalidHeaderDeserialization(error)))?;
        let data = LENGTH + header;
        if Some(found) != data.checked_add(metadata.data_len() as u64) {
            return Err(unsound(SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { file, data, metadata })
    }

    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata.info(name).ok_or_else(|| wrong(format!("it has no tensor {name}")))
    }

    /// Reads bytes of a tensor, from `offset` on.
    pub fn read(&mut self, name: &str, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let first = self.data + self.tensor(name)?.data_offsets.0 as u64 + offset;
        self.file.seek(SeekFrom::Start(first))?;
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => wrong(format!("it ends within {name}: it was cut shorter while it was read")),
            _ => error,
        })
    }
}

fn read(file: &mut File, bytes: &mut [u8], short: SafeTensorError) -> Result<()> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => unsound(short),
        _ => error,
    })
}

fn unsound(error: SafeTensorError) -> Error {
    wrong(format!("no sound safetensors file: {error}"))
}

pub fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
}

/// The layout of a file that ranks write together.
pub struct Target {
    data: u64,
    tensors: Vec<u64>,
    header: Vec<u8>,
}

impl Target {
    /// Of a file with these tensors: name, type, shape and bytes.
    pub fn new(tensors: &[(&str, &str, Vec<u64>, u64)]) -> Self {
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
        Self { data, tensors: firsts.into_iter().chain([at]).collect(), header: bytes }
    }

    /// Gives an empty file its whole length, and a mark where the header will be.
    pub fn begin(&self, file: &mut File, mark: &[u8]) -> Result<()> {
        file.write_all(mark)?;
        file.set_len(self.data + self.tensors.last().copied().unwrap_or(0))?;
        // Ranks on other hosts look for it.
        file.sync_data()
    }

    /// Writes the header in place of the mark: now it is a safetensors file.
    pub fn end(&self, file: &mut File) -> Result<()> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&self.header)
    }

    /// Writes bytes of a tensor.
    pub fn write(&self, file: &mut File, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        file.seek(SeekFrom::Start(self.data + self.tensors[tensor] + offset))?;
        // A file that is being written cannot be removed, and `mpirun` waits for one second from SIGTERM to SIGKILL.
        bytes.chunks(PIECE).try_for_each(|piece| file.write_all(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_an_error() {
        let path = std::env::temp_dir().join(format!("flash-ring-cut-{}", std::process::id()));
        let target = Target::new(&[("a", "F32", vec![4], 16), ("b", "F32", vec![1 << 20], 4 << 20)]);
        let mut file = File::create(&path).unwrap();
        target.begin(&mut file, &[255; 8]).unwrap();
        assert!(Source::open(&path).is_err());
        target.end(&mut file).unwrap();
        target.write(&mut file, 0, 8, &[1; 8]).unwrap();
        let (mut source, mut bytes) = (Source::open(&path).unwrap(), [0; 16]);
        source.read("a", 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        source.read("b", (4 << 20) - 16, &mut bytes).unwrap();
        file.set_len(target.data + 1000).unwrap();
        let error = source.read("b", (4 << 20) - 16, &mut bytes).unwrap_err().to_string();
        assert_eq!(error, "it ends within b: it was cut shorter while it was read");
        for length in [0, 7, 8, target.data - 1, target.data + 1000] {
            file.set_len(length).unwrap();
            let error = Source::open(&path).err().unwrap().to_string();
            assert!(error.starts_with("no sound safetensors file: "), "{length}: {error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
