//! Functions in the user's own WGSL, from files.

use std::path::{Path, PathBuf};

use clap::Args;
use wgpu_flash_attention::{AttentionProblem, AuxType, KeyMask, MaskWgsl, ScoreMod, ScoreWgsl, WgslFault, WgslOptions};

use crate::failure::{Failure, Result};

#[derive(Args)]
pub struct WgslFiles {
    /// A file in WGSL with fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32. It changes each
    /// score after --softcap, before --alibi and a bias. In `flash run` it may read aux[i], numbers of the tensor aux in the
    /// file: f32, or u32 if it holds integers.
    #[arg(long, value_name = "FILE")]
    pub score_mod: Option<PathBuf>,
    /// A file in WGSL with fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32, for
    /// gradients; the file of --score-mod may hold it too. It may call what that file defines.
    #[arg(long, value_name = "FILE", requires = "score_mod")]
    pub score_mod_grad: Option<PathBuf>,
    /// A file in WGSL with fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool: whether the row may see the
    /// key. Over a cache q_idx is the row's position, here and in score_mod.
    #[arg(long, value_name = "FILE")]
    pub mask_mod: Option<PathBuf>,
    /// The most turns that all loops of one call of these functions may take together. [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_turns: Option<u32>,
}

/// The same, read and checked.
#[derive(Default)]
pub struct OwnWgsl {
    score: Option<ScoreWgsl>,
    mask: Option<MaskWgsl>,
}

impl WgslFiles {
    /// Reads the files. `aux` is the type of the numbers that they may read.
    pub fn read(&self, aux: AuxType) -> Result<OwnWgsl> {
        let options = WgslOptions::new().with_aux(aux);
        let options = self.max_turns.map_or(options, |most| options.with_max_turns(most));
        let score = self.score_mod.as_deref().map(|path| -> Result<ScoreWgsl> {
            let files: Vec<&Path> = [path].into_iter().chain(self.score_mod_grad.as_deref()).collect();
            let texts = files.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
            let own = ScoreWgsl::with_options(&texts.concat(), options);
            let own = own.map_err(|fault| failure(&files, &texts, &fault))?;
            if self.mask_mod.is_none() {
                tell_if_unused(path, &texts[0], "mask_mod", "--mask-mod");
            }
            Ok(own)
        });
        let mask = self.mask_mod.as_deref().map(|path| -> Result<MaskWgsl> {
            let text = read(path)?;
            let own = MaskWgsl::with_options(&text, options);
            let own = own.map_err(|fault| failure(&[path], std::slice::from_ref(&text), &fault))?;
            if self.score_mod.is_none() {
                tell_if_unused(path, &text, "score_mod", "--score-mod");
            }
            Ok(own)
        });
        Ok(OwnWgsl { score: score.transpose()?, mask: mask.transpose()? })
    }
}

/// A file may hold both functions, but each is asked for by its option.
fn tell_if_unused(path: &Path, text: &str, name: &str, option: &str) {
    let named = |line: &str| {
        let rest = line.trim_start().strip_prefix("fn")?.trim_start().strip_prefix(name)?;
        rest.trim_start().starts_with('(').then_some(())
    };
    if text.lines().any(|line| named(line).is_some()) {
        eprintln!("note: {name} of {0} is not used; add {option} {0}", path.display());
    }
}

/// The text of a file, which ends with a whole line.
fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format_args!("cannot read {}: {error}", path.display())))?;
    // Some editors of Windows mark UTF-8.
    Ok(text.trim_start_matches('\u{feff}').to_owned() + "\n")
}

/// Where the fault is in the files whose texts follow each other.
fn failure(files: &[&Path], texts: &[String], fault: &WgslFault) -> Failure {
    let mut line = fault.line() as usize;
    let mut place = files[0];
    for (file, text) in files.iter().zip(texts) {
        place = file;
        let lines = text.lines().count();
        if line <= lines {
            break;
        }
        line -= lines;
    }
    let (place, column, message) = (place.display(), fault.column(), fault.message());
    Failure::new(format_args!("{place}:{line}:{column}: {message}: `{}`", fault.source_line().trim()))
}

impl OwnWgsl {
    pub fn is_empty(&self) -> bool {
        self.score.is_none() && self.mask.is_none()
    }

    pub fn reads_aux(&self) -> bool {
        self.score.as_ref().is_some_and(ScoreWgsl::reads_aux) || self.mask.as_ref().is_some_and(MaskWgsl::reads_aux)
    }

    /// Refuses gradients of a score_mod without its gradient. `asks` is what asks for them, `otherwise` how to do without.
    pub fn expect_gradient(&self, asks: &str, otherwise: &str) -> Result<()> {
        match &self.score {
            Some(score) if !score.has_gradient() => Err(Failure::new(format_args!(
                "{asks} asks for gradients, and --score-mod has no fn score_mod_grad: add it to the file, give it by \
                 --score-mod-grad, or {otherwise}"
            ))),
            _ => Ok(()),
        }
    }

    /// Adds score_mod.
    pub fn modify(&self, problem: AttentionProblem) -> AttentionProblem {
        let scores = self.score.iter().cloned().map(ScoreMod::Wgsl);
        scores.fold(problem, AttentionProblem::with_score)
    }

    /// Adds mask_mod.
    pub fn mask(&self, problem: AttentionProblem) -> AttentionProblem {
        let masks = self.mask.iter().cloned().map(KeyMask::Wgsl);
        masks.fold(problem, AttentionProblem::with_key_mask)
    }
}
