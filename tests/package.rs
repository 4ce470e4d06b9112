//! What is published: every file that the crate needs, none that it does not, under names that every system can hold.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the package, as Cargo lists them.
fn files() -> Vec<String> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["package", "--list", "--allow-dirty", "--offline"]);
    let done = command.output().expect("Cargo can be run");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).lines().map(|line| line.replace('\\', "/")).collect()
}

/// Files that Cargo adds by itself.
const ADDED: [&str; 3] = ["Cargo.toml.orig", ".cargo_vcs_info.json", "Cargo.lock"];

#[test]
fn the_package_holds_what_it_must_and_no_more() {
    let files = files();
    for file in &files {
        let extension = Path::new(file).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let fits = match file.split_once('/') {
            None => {
                ADDED.contains(&file.as_str())
                    || file == "Cargo.toml"
                    || extension == "md"
                    || file.starts_with("LICENSE-")
            }
            Some(("src" | "benches", _)) => extension == "rs",
            Some(("examples", _)) => ["rs", "wgsl"].contains(&extension),
            Some(("shaders", _)) => ["wgsl", "md"].contains(&extension),
            Some(("docs", _)) => ["md", "svg"].contains(&extension),
            Some(_) => false,
        };
        assert!(fits, "{file} does not belong into the package");
    }
    for needed in
        ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs", "shaders/flash_forward.wgsl"]
    {
        assert!(files.iter().any(|file| file == needed), "{needed} is missing");
    }
    let size: u64 = files.iter().filter_map(|file| Some(root().join(file).metadata().ok()?.len())).sum();
    assert!((500_000..4_000_000).contains(&size), "the package has {size} bytes");
}

/// Windows cannot hold files or folders of some names, whatever their ending, nor two whose names differ in case alone.
#[test]
fn names_fit_every_system() {
    const RESERVED: [&str; 4] = ["con", "prn", "aux", "nul"];
    let mut seen = HashSet::new();
    for file in files() {
        let lower = file.to_lowercase();
        for part in lower.split('/') {
            let stem = part.split('.').next().unwrap_or_default();
            let is_port = ["com", "lpt"].iter().any(|port| {
                stem.strip_prefix(port).is_some_and(|number| number.len() == 1 && number.parse::<u8>().is_ok())
            });
            assert!(!RESERVED.contains(&stem) && !is_port, "{file}: Windows reserves the name {stem}");
            let is_plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            assert!(is_plain && !part.ends_with('.'), "{file}: {part} is no name for every system");
        }
        assert!(seen.insert(lower), "{file} differs from another in case alone");
    }
}
