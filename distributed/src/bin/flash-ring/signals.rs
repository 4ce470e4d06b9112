//! Signals that end the program. It ends as it would without a handler, but says so, and leaves no file unfinished.

use std::sync::OnceLock;

/// The rank that this process is over MPI.
pub static RANK: OnceLock<usize> = OnceLock::new();

#[cfg(not(unix))]
pub fn handle() {}

/// From now on, signals are handled.
#[cfg(unix)]
pub fn handle() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    use std::sync::atomic::AtomicBool;
    // Beyond the limit of file sizes a write fails, and with it the rank.
    static TOO_LARGE: AtomicBool = AtomicBool::new(false);
    let _ = signal_hook::flag::register(libc::SIGXFSZ, &TOO_LARGE);
    let ending = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, libc::SIGXCPU];
    let Ok(mut signals) = signal_hook::iterator::Signals::new(ending.into_iter().filter(|signal| !is_ignored(*signal)))
    else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            end(signal);
        }
    });
}

/// As `nohup` has it for SIGHUP, and a shell for SIGINT in the background.
#[cfg(unix)]
#[expect(unsafe_code, reason = "a function of C")]
fn is_ignored(signal: i32) -> bool {
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is set, and what is found is read only if it was written.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr()) == 0
            && found.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(unix)]
fn end(signal: i32) {
    let removed = crate::unfinished::remove_all();
    let rank = RANK.get().map_or(String::new(), |rank| format!("rank {rank}: "));
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    let by_mpirun = RANK.get().is_some() && signal == libc::SIGTERM;
    let why =
        if by_mpirun { ", which mpirun sends when another rank has ended: it says below which was first" } else { "" };
    let removed: String = removed.iter().map(|path| format!("; {} is removed", path.display())).collect();
    crate::words::say(&format!("{rank}ended by {name}{why}{removed}"));
    // At once: destructors of drivers and of MPI may wait for what has ended.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
