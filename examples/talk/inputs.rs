//! Q, K and V to compare on.

use std::path::{Path, PathBuf};

use wgpu_flash_attention::Element;

use crate::case::{Inputs, Problem};
use crate::draws::Draws;
use crate::failure::{Failure, Result};
use crate::tensors;

/// The widest head, of files as of --head-dim.
const MOST_DIM: u32 = 256;

/// Where Q, K and V come from.
pub enum Source {
    /// N(0, 1), with Q and K this many times as large.
    Normal(f64),
    /// A file: batch, heads of Q and of K, length and width, and the values.
    File(File),
}

/// Q, K and V of a safetensors file, `[batch, heads, seqlen, head_dim]`.
pub struct File {
    path: PathBuf,
    /// As the file has them: its length, f32.
    problem: Problem,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Source {
    /// `random`, `peaked`, or a file.
    pub fn new(text: &str) -> Result<Self> {
        Ok(match text {
            // Nearly uniform softmax flatters methods of low rank.
            "random" => Source::Normal(1.0),
            // A softmax with few large entries flatters sparse methods.
            "peaked" => Source::Normal(4.0),
            path => File::source(Path::new(path))?,
        })
    }

    /// For records.
    pub fn name(&self) -> String {
        match self {
            Source::Normal(1.0) => "random".to_owned(),
            Source::Normal(_) => "peaked".to_owned(),
            Source::File(file) => {
                file.path.file_name().map_or("file".to_owned(), |name| name.to_string_lossy().into_owned())
            }
        }
    }

    /// The problem that a file sets.
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Source::Normal(_) => None,
            Source::File(file) => Some(file.problem),
        }
    }

    /// Fails where a value of the file is not finite in this element.
    ///
    /// # Errors
    /// The tensor, the place and the value.
    pub fn check_element(&self, element: Element) -> Result<()> {
        let Source::File(file) = self else { return Ok(()) };
        let Problem { num_heads, num_heads_kv, seqlen, head_dim, .. } = file.problem;
        for (name, values, heads) in
            [("q", &file.q, num_heads), ("k", &file.k, num_heads_kv), ("v", &file.v, num_heads_kv)]
        {
            let Some(at) = values.iter().position(|x| !element.round(f64::from(*x)).is_finite()) else { continue };
            let value = values[at];
            let [heads, seqlen, dim] = [heads, seqlen, head_dim].map(|dim| dim as usize);
            let place = [at / dim / seqlen / heads, at / dim / seqlen % heads, at / dim % seqlen, at % dim];
            let reason = match value.is_finite() {
                true => format!("{value} at {place:?}, which is too large for {}", element.name()),
                false => format!("{} at {place:?}", crate::case::not_finite(value)),
            };
            return Err(Failure::new(format_args!("{}: {name} has {reason}", file.path.display())));
        }
        Ok(())
    }

    /// Q, K and V of a problem: of a file, its first tokens.
    pub fn inputs(&self, problem: &Problem, seed: u64) -> Inputs {
        match self {
            Source::Normal(scale) => normal(problem, seed, *scale),
            Source::File(file) => {
                let first = |tensor: &[f32]| -> Vec<f32> {
                    let round = |x: &f32| problem.element.round(f64::from(*x)) as f32;
                    let heads = tensor.chunks_exact(file.problem.head_len());
                    heads.flat_map(|head| head[..problem.head_len()].iter().map(round)).collect()
                };
                Inputs { problem: *problem, q: first(&file.q), k: first(&file.k), v: first(&file.v) }
            }
        }
    }
}

/// Normal numbers.
pub fn normal(problem: &Problem, seed: u64, scale: f64) -> Inputs {
    let draws = Draws::new(seed, "inputs");
    let tensor =
        |stream: u32, len: usize, scale: f64| draws.normals(stream, len, |x| problem.element.round(scale * x) as f32);
    Inputs {
        problem: *problem,
        q: tensor(0, problem.q_len(), scale),
        k: tensor(1, problem.kv_len(), scale),
        v: tensor(2, problem.kv_len(), 1.0),
    }
}

impl File {
    /// A file, all of whose values are finite.
    fn source(path: &Path) -> Result<Source> {
        let state = tensors::read(path)?;
        let failure = |reason: &str| Failure::new(format_args!("{}: {reason}", path.display()));
        let tensor = |name: &str| -> Result<(Vec<u32>, Vec<f32>)> {
            let tensor = state.get(name).ok_or_else(|| failure(&format!("has no tensor {name}")))?;
            let dims: Option<Vec<u32>> = tensor.dims.iter().map(|dim| u32::try_from(*dim).ok()).collect();
            match dims {
                Some(dims) if dims.len() == 4 && !tensor.f32s().is_empty() => Ok((dims, tensor.f32s().to_vec())),
                _ => Err(failure(&format!(
                    "{name} must be batch × heads × seqlen × dim of F32, F16 or BF16, and not empty"
                ))),
            }
        };
        let ((of_q, q), (of_k, k), (of_v, v)) = (tensor("q")?, tensor("k")?, tensor("v")?);
        let ([batch, heads, seqlen, dim], [batch_kv, heads_kv, seqlen_kv, dim_kv]) =
            ([of_q[0], of_q[1], of_q[2], of_q[3]], [of_k[0], of_k[1], of_k[2], of_k[3]]);
        if of_k != of_v || batch != batch_kv || seqlen != seqlen_kv || dim != dim_kv {
            return Err(failure("q, k and v must have one batch, seqlen and dim, and k and v as many heads"));
        }
        if !heads.is_multiple_of(heads_kv) {
            return Err(failure("the heads of q are not a multiple of those of k and v"));
        }
        if dim > MOST_DIM {
            return Err(failure(&format!("dim is {dim}, and {MOST_DIM} is the most here")));
        }
        let (num_heads, num_heads_kv) = (heads, heads_kv);
        let problem =
            Problem { batch, num_heads, num_heads_kv, seqlen, head_dim: dim, element: Element::F32, causal: false };
        let file = Source::File(Self { path: path.to_owned(), problem, q, k, v });
        file.check_element(Element::F32)?;
        Ok(file)
    }
}
