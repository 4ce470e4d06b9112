//! Files that commands write: whole or not at all, at the place where symbolic links end.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempPath;

use crate::failure::{Failure, Result};

/// A place for an output file, tried out before the work starts.
pub struct Target {
    /// As the user named it.
    path: PathBuf,
}

impl Target {
    /// Fails where a file of this name could not be put.
    pub fn new(path: &Path) -> Result<Self> {
        let target = Self { path: path.to_owned() };
        if is_pipe(path) {
            return Ok(target);
        }
        let place = target.place()?;
        if place.exists() {
            // A rename would replace a read-only file as well.
            std::fs::OpenOptions::new().append(true).open(&place).map_err(|error| target.failure(error))?;
        }
        target.temporary(&place)?;
        Ok(target)
    }

    /// Puts the whole file in place at once. Of two runs that write one file, the last to end wins.
    pub fn write(self, bytes: &[u8]) -> Result<()> {
        if is_pipe(&self.path) {
            let mut out = io::stdout().lock();
            return Ok(out.write_all(bytes).and_then(|()| out.flush())?);
        }
        // Links may have changed while the answer was computed.
        let place = self.place()?;
        let mut temporary = self.temporary(&place)?;
        let file = &mut temporary.file;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| self.failure(error))?;
        temporary.persist(&place).map_err(|error| self.failure(error))
    }

    fn failure(&self, reason: impl std::fmt::Display) -> Failure {
        Failure::new(format_args!("cannot write {}: {reason}", self.path.display()))
    }

    fn place(&self) -> Result<PathBuf> {
        followed(&self.path).map_err(|reason| self.failure(reason))
    }

    /// A file in the folder of the target, so that it can be renamed; gone when dropped.
    fn temporary(&self, place: &Path) -> Result<Temporary> {
        // The temporary file's own random name is of no use in the message.
        let temporary = Temporary::new(folder_of(place)).map_err(|error| self.failure(error.kind()))?;
        #[cfg(unix)]
        if let Ok(existing) = std::fs::metadata(place) {
            use std::os::unix::fs::{MetadataExt, fchown};
            let file = &temporary.file;
            // Only the superuser may give a file away; others have written their own, or leave it theirs.
            let _ = fchown(file, Some(existing.uid()), Some(existing.gid()));
            file.set_permissions(existing.permissions()).map_err(|error| self.failure(error))?;
        }
        Ok(temporary)
    }
}

/// Whether results go to standard output.
pub fn is_pipe(path: &Path) -> bool {
    path == Path::new("-")
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// As many as Linux follows.
const MOST_LINKS: usize = 40;

/// Where the links from this path end: at a regular file, or at a name that is free. Else why nothing can be put there.
fn followed(path: &Path) -> std::result::Result<PathBuf, String> {
    let mut place = path.to_owned();
    for _ in 0..=MOST_LINKS {
        let ends_in_separator = place.to_string_lossy().ends_with(std::path::is_separator);
        if place.file_name().is_none() || ends_in_separator {
            return Err("it is the name of a folder, not a regular file".to_owned());
        }
        if is_stream(&place) {
            let reason = "it is a stream, and results are written as whole files, which are put in place at the end; name a \
                          regular file, or - for standard output";
            return Err(reason.to_owned());
        }
        match std::fs::symlink_metadata(&place) {
            Ok(found) if found.is_symlink() => {
                let end = std::fs::read_link(&place).map_err(|error| error.to_string())?;
                place = folder_of(&place).join(end);
            }
            Ok(found) if found.is_file() => return Ok(place),
            Ok(found) => return Err(format!("it is a {}, not a regular file", kind(found.file_type()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(place),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("too many symbolic links".to_owned())
}

/// `/dev/stdout` and its like: where they lie, names stand for what the program has open, be it a regular file.
fn is_stream(path: &Path) -> bool {
    let folder = folder_of(path).canonicalize();
    folder.is_ok_and(|folder| folder.starts_with("/proc") || folder.starts_with("/dev/fd"))
}

fn kind(found: std::fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if found.is_fifo() {
            return "pipe";
        }
        if found.is_socket() {
            return "socket";
        }
        if found.is_char_device() || found.is_block_device() {
            return "device";
        }
    }
    if found.is_dir() { "folder" } else { "special file" }
}

/// Those that exist. Who holds the lock makes one, puts one in place or removes some; the signal that ends the program
/// does the last.
static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn temporaries() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is removed when it is dropped, or when a signal ends the program.
struct Temporary {
    file: File,
    /// `None` once it is in place.
    path: Option<TempPath>,
}

impl Temporary {
    fn new(folder: &Path) -> io::Result<Self> {
        #[cfg(unix)]
        signals::watch();
        let mut builder = tempfile::Builder::new();
        builder.prefix(".flash-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Less what the user's mask takes away.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut temporaries = temporaries();
        let (file, path) = builder.tempfile_in(folder)?.into_parts();
        temporaries.push(path.to_path_buf());
        Ok(Self { file, path: Some(path) })
    }

    /// Renames it.
    fn persist(mut self, place: &Path) -> io::Result<()> {
        let mut temporaries = temporaries();
        let Some(path) = self.path.take() else { return Ok(()) };
        temporaries.retain(|other| *other != *path);
        path.persist(place).map_err(|error| error.error)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let mut temporaries = temporaries();
            temporaries.retain(|other| *other != *path);
            drop(path);
        }
    }
}

/// Signals that end the program leave no temporary behind. (On Windows, Ctrl-C may.)
#[cfg(unix)]
mod signals {
    use std::sync::Once;

    use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::emulate_default_handler;

    pub fn watch() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // A file that may not grow is an error of the write, not the end of the program.
            // SAFETY: no handler is installed; the signal is ignored from here on.
            unsafe { libc::signal(SIGXFSZ, libc::SIG_IGN) };
            let wanted = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU];
            let wanted = wanted.into_iter().filter(|signal| !is_ignored(*signal));
            let Ok(mut signals) = Signals::new(wanted) else { return };
            std::thread::spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    // Held until the end: no other is made, and none is put in place.
                    let temporaries = super::temporaries();
                    for path in &*temporaries {
                        let _ = std::fs::remove_file(path);
                    }
                    let _ = emulate_default_handler(signal);
                }
            });
        });
    }

    /// `nohup` and shells that start a command in the background have it ignore signals.
    fn is_ignored(signal: i32) -> bool {
        // SAFETY: a zeroed sigaction is one, and without a new action this only reads the old one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
        }
    }
}
