//! safetensors files, of which each rank reads and writes its own rows. Writing is done here, since ranks write one file together:
//! eight bytes that say how long the header is, the header in JSON, and the tensors.

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Seek, SeekFrom, Write};
use std::path::Path;

/// The bytes of a file: the system brings in what is looked at, and nothing else.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path)?;
    #[expect(unsafe_code, reason = "others may write to a file that is mapped")]
    // SAFETY: of the tensors' bytes any value will do, and the header is read once, when the file is opened. A file that is cut
    // shorter while it is read ends the program.
    unsafe {
        Mmap::map(&file)
    }
}

/// The tensors in those bytes.
pub fn tensors(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes).map_err(|error| wrong(format!("no sound safetensors file: {error}")))
}

pub fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
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
