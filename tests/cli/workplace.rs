use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

/// An example, which `cargo test` builds beside the tests. `cargo test --test cli` alone does not, and an old program
/// must not pass for the new one.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
    let program = folder.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let built = program.metadata().and_then(|metadata| metadata.modified());
    let newest = sources(&program).iter().filter_map(|source| source.metadata().ok()?.modified().ok()).max();
    assert!(
        newest.is_some() && built.is_ok_and(|built| Some(built) >= newest),
        "{} is missing or older than its source: run `cargo build --examples`",
        program.display()
    );
    program
}

/// The files that a program was built from. Cargo lists them beside it, with a backslash before a space.
fn sources(program: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let Some((_, sources)) = listed.split_once(": ") else { return Vec::new() };
    let spaces_apart = sources.replace("\\ ", "\0");
    spaces_apart.split_whitespace().map(|source| PathBuf::from(source.replace('\0', " "))).collect()
}

/// Has the program heed a signal. Tests that run in the background have it ignored.
#[cfg(unix)]
pub fn heed(command: &mut Command, signal: i32) {
    use std::os::unix::process::CommandExt;
    let heed = move || {
        // SAFETY: `signal` may be called between fork and exec.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: see there.
    unsafe { command.pre_exec(heed) };
}

/// A folder of its own for each test.
pub struct Workplace(pub TempDir);

/// What OUT holds before a run that must not touch it.
pub const OLD: &[u8] = b"an older result";

impl Workplace {
    pub fn new() -> Self {
        Self(TempDir::new().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("a plain path").to_owned()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).expect("the folder is writable");
        self.path(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("flash"));
        // Without this folder a layer of Mesa complains on standard error.
        command.args(arguments).env("XDG_RUNTIME_DIR", self.0.path()).stdin(Stdio::null());
        command
    }

    pub fn flash(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the folder is readable");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Exit status 2, one line on standard error that holds `reason`, nothing on standard output, no file changed.
    pub fn refuses(&self, arguments: &[&str], reason: &str) {
        self.write("out", OLD);
        let files = self.files();
        one_line(arguments, &self.flash(arguments), reason);
        assert_eq!(std::fs::read(self.path("out")).expect("OUT is still there"), OLD, "{arguments:?} touched OUT");
        assert_eq!(self.files(), files, "{arguments:?} left files behind");
    }

    /// Runs and gives o, in f64, and lse.
    pub fn run(&self, input: &str, options: &[&str]) -> Answer {
        let output = self.path("result");
        let arguments: Vec<&str> = ["run", input, &output].iter().chain(options).copied().collect();
        let done = self.flash(&arguments);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        assert_eq!(text(&done.stderr), "", "{arguments:?}");
        let bytes = std::fs::read(&output).expect("OUT was written");
        let tensors = SafeTensors::deserialize(&bytes).expect("OUT is a safetensors file");
        let (o, lse) = (tensors.tensor("o").expect("o"), tensors.tensor("lse").expect("lse"));
        let gradients = ["dq", "dk", "dv", "dsink", "dbias"].map(|name| tensors.tensor(name).ok());
        assert_eq!(lse.dtype(), Dtype::F32);
        Answer {
            dtype: o.dtype(),
            o_shape: o.shape().to_vec(),
            lse_shape: lse.shape().to_vec(),
            o: decode(&o),
            lse: decode(&lse),
            gradients: gradients.into_iter().flatten().map(|view| (view.shape().to_vec(), decode(&view))).collect(),
            probabilities: tensors.tensor("probabilities").ok().map(|view| (view.shape().to_vec(), decode(&view))),
            gradient_dtype: tensors.tensor("dq").ok().map(|view| view.dtype()),
            stdout: text(&done.stdout),
        }
    }
}

#[derive(Clone)]
pub struct Answer {
    pub dtype: Dtype,
    pub o_shape: Vec<usize>,
    pub lse_shape: Vec<usize>,
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    /// Shape and values of dq, dk, dv, dsink and dbias, those that there are.
    pub gradients: Vec<(Vec<usize>, Vec<f64>)>,
    /// Shape and values, where they are asked for.
    pub probabilities: Option<(Vec<usize>, Vec<f64>)>,
    pub gradient_dtype: Option<Dtype>,
    pub stdout: String,
}

impl Answer {
    /// Within `tolerance` of the largest |O|, twice that of the largest entry of each gradient, and 1e-5 for LSE.
    pub fn agrees(&self, other: &Answer, tolerance: f64, what: &str) {
        assert_eq!((&self.o_shape, &self.lse_shape), (&other.o_shape, &other.lse_shape), "{what}");
        let largest = other.o.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        for (found, expected) in self.o.iter().zip(&other.o) {
            assert!((found - expected).abs() <= tolerance * largest, "{what}: o {found} for {expected}");
        }
        assert_eq!(self.gradients.len(), other.gradients.len(), "{what}");
        for ((shape, found), (expected_shape, expected)) in self.gradients.iter().zip(&other.gradients) {
            assert_eq!(shape, expected_shape, "{what}");
            // What cancels in them is of size 1 and more.
            let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
            for (found, expected) in found.iter().zip(expected) {
                let near = (found - expected).abs() <= 2.0 * tolerance * largest;
                assert!(near, "{what}: gradient {found} for {expected}");
            }
        }
        for (found, expected) in self.lse.iter().zip(&other.lse) {
            let near = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(found == expected || near, "{what}: lse {found} for {expected}");
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn one_line(arguments: &[&str], done: &Output, reason: &str) {
    let stderr = text(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert_eq!(text(&done.stdout), "", "{arguments:?}");
    assert!(stderr.ends_with('\n') && stderr.lines().count() == 1, "{arguments:?}: not one line: {stderr}");
    assert!(stderr.starts_with("flash: "), "{arguments:?}: {stderr}");
    assert!(stderr.contains(reason), "{arguments:?}: no '{reason}' in: {stderr}");
}

fn decode(tensor: &TensorView) -> Vec<f64> {
    let bytes = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        other => panic!("o or lse is stored as {other:?}"),
    }
}

/// A safetensors file of smooth, unequal values.
pub fn file(tensors: &[(&str, Dtype, [usize; 4])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .enumerate()
        .map(|(t, (_, dtype, shape))| {
            let value = |i: usize| ((i * (7 + 2 * t) + t) as f64 * 0.618).sin() * 2.0;
            let values = (0..shape.iter().product()).map(value);
            match dtype {
                Dtype::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
                Dtype::F16 => values.flat_map(|value| f16::from_f64(value).to_le_bytes()).collect(),
                Dtype::BF16 => values.flat_map(|value| bf16::from_f64(value).to_le_bytes()).collect(),
                _ => values.flat_map(f64::to_le_bytes).collect(),
            }
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("the bytes fit the shape"))
    });
    safetensors::serialize(views, None).expect("a safetensors file")
}

pub fn qkv(dtype: Dtype, q: [usize; 4], k: [usize; 4], v: [usize; 4]) -> Vec<u8> {
    file(&[("q", dtype, q), ("k", dtype, k), ("v", dtype, v)])
}

/// A file with this header and so many bytes of data, whatever they say of each other.
pub fn forged(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

pub const SHAPE: [usize; 4] = [1, 2, 5, 8];
