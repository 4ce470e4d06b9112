//! Files that are written under another name, NAME.unfinished, until all of them is there. Who makes one holds a lock on it, so a
//! second run keeps off. What a run leaves that was killed has no lock, and the next takes it over.

use same_file::{Handle, is_same_file};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is added to the name of a file.
const UNFINISHED: &str = "unfinished";

/// The unfinished files of a run.
struct Files {
    /// Of all ranks. If the one that holds a file dies, another removes it.
    names: Vec<PathBuf>,
    /// Those of this process, with their locks.
    held: Vec<(PathBuf, File)>,
}

/// Held while a file is made, finished or removed: a signal comes before or after.
static FILES: Mutex<Files> = Mutex::new(Files { names: Vec::new(), held: Vec::new() });

fn files() -> MutexGuard<'static, Files> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a file is to be.
#[derive(Clone)]
pub struct Destination {
    finished: PathBuf,
    unfinished: PathBuf,
}

impl Destination {
    /// Of a path; a link is followed.
    ///
    /// # Errors
    /// For what is no regular file, which a new one would replace, and for names of unfinished files.
    pub fn new(path: &Path) -> Result<Self> {
        let finished = if is_regular(path)? { fs::canonicalize(path)? } else { path.to_owned() };
        if finished.extension() == Some(OsStr::new(UNFINISHED)) {
            return Err(refused("a run would take a file of this name for one that is not finished"));
        }
        let mut unfinished = finished.clone().into_os_string();
        unfinished.push(format!(".{UNFINISHED}"));
        Ok(Self { finished, unfinished: unfinished.into() })
    }

    /// Where it is until it is finished.
    pub fn unfinished(&self) -> &Path {
        &self.unfinished
    }

    /// Whether writing it would overwrite another file.
    pub fn is(&self, other: &Path) -> bool {
        [&self.finished, &self.unfinished].into_iter().any(|path| is_same_file(path, other).unwrap_or(false))
    }

    /// Any process of the run may remove it from now on, if the one that made it has died.
    pub fn announce(&self) {
        files().names.push(self.unfinished.clone());
    }

    /// Makes it, empty.
    pub fn create(&self) -> Result<Unfinished> {
        let mut files = files();
        let file = lock(&self.unfinished)?;
        file.set_len(0)?;
        files.held.push((self.unfinished.clone(), file));
        Ok(Unfinished(self.clone()))
    }
}

/// Whether there is a file.
fn is_regular(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(refused("it is a directory")),
        Ok(found) if !found.is_file() => Err(refused("it is no regular file")),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => Ok(false),
        Err(error) => Err(error),
    }
}

fn refused(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, reason)
}

/// A file of this process, which is removed unless it is finished.
pub struct Unfinished(Destination);

impl Unfinished {
    /// Where it is until it is finished.
    pub fn path(&self) -> &Path {
        &self.0.unfinished
    }

    /// Another handle of it, for any rank.
    pub fn open(path: &Path) -> Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Gives it its name.
    pub fn finish(self) -> Result<()> {
        let mut files = files();
        let Destination { finished, unfinished } = &self.0;
        let held = files.held.iter().position(|(path, _)| path == unfinished);
        let held = held.filter(|held| is_at(&files.held[*held].1, unfinished));
        let held = held.ok_or_else(|| refused("it was removed or replaced while it was written"))?;
        fs::rename(unfinished, finished)?;
        files.held.swap_remove(held);
        drop(files);
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut files = files();
        let held = files.held.iter().position(|(path, _)| *path == self.0.unfinished);
        if let Some(held) = held {
            let (path, file) = files.held.swap_remove(held);
            remove(&path, &file);
        }
    }
}

/// Opens a file, which nobody else holds, and locks it.
fn lock(path: &Path) -> Result<File> {
    is_regular(path)?;
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        if !is_free(&file) {
            return Err(refused("another run writes it"));
        }
        // Who held it may have removed it meanwhile.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Locks a file, or is told that somebody else has. Some file systems know no locks; nothing keeps two runs apart there. On Windows
/// a lock would keep other ranks from writing too.
fn is_free(file: &File) -> bool {
    cfg!(windows) || !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether this file is the one with that name.
fn is_at(file: &File, path: &Path) -> bool {
    let handles = (file.try_clone().and_then(Handle::from_file), Handle::from_path(path));
    matches!(handles, (Ok(file), Ok(named)) if file == named)
}

fn remove(path: &Path, file: &File) -> bool {
    is_at(file, path) && fs::remove_file(path).is_ok()
}

/// Removes what this run leaves unfinished, for it ends: what was removed. From now on this process makes and finishes no file.
#[cfg(unix)]
pub fn remove_all() -> Vec<PathBuf> {
    let files = std::mem::ManuallyDrop::new(files());
    let mut removed: Vec<PathBuf> =
        files.held.iter().filter(|(path, file)| remove(path, file)).map(|(path, _)| path.clone()).collect();
    for path in &files.names {
        // Those of ranks that live are theirs to remove.
        if is_regular(path).is_ok_and(|is| is)
            && let Ok(file) = Unfinished::open(path)
            && is_free(&file)
            && remove(path, &file)
        {
            removed.push(path.clone());
        }
    }
    removed
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("flash-ring-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_finished() {
        let folder = folder("finished");
        let path = folder.join("out");
        let destination = Destination::new(&path).unwrap();
        // What a killed run left.
        fs::write(destination.unfinished(), "old").unwrap();
        let first = destination.create().unwrap();
        assert_eq!(fs::read(destination.unfinished()).unwrap(), b"");
        let second = destination.create().err().unwrap().to_string();
        assert_eq!(second, "another run writes it");
        fs::write(destination.unfinished(), "new").unwrap();
        assert!(!path.exists());
        first.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(destination.create().unwrap());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        // The one that another run has in its place stays.
        let third = destination.create().unwrap();
        fs::remove_file(destination.unfinished()).unwrap();
        fs::write(destination.unfinished(), "of another").unwrap();
        assert!(third.finish().unwrap_err().to_string().contains("replaced"));
        assert_eq!(fs::read(destination.unfinished()).unwrap(), b"of another");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::remove_dir_all(folder).unwrap();
    }
}
