//! Attention of tensors in a file.

use crate::arguments::RunOptions;
use crate::launch::{Failure, Work, launch};
use crate::safetensors::{Target, map, reopen, tensors, wrong};
use safetensors::{Dtype, SafeTensors};
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, FlashAttention, Operand};
use wgpu_flash_attention_distributed::{Error, RingAttention, Span, Transport, wgpu_flash_attention};

pub fn run(options: &RunOptions) -> Result<(), Failure> {
    launch(&options.ranks, options)?;
    Ok(())
}

/// Names the file of an error.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::Transport(format!("{}: {error}", path.display())))
}

impl Work for RunOptions {
    type Answer = ();

    fn rank<T: Transport>(&self, mut transport: T, device: FlashAttention) -> Result<Option<()>, Error> {
        let fail = |error: &Error| transport.fail(&error.to_string());
        let bytes = at(&self.input, map(&self.input)).inspect_err(fail)?;
        let fail = |error: &Error| transport.fail(&error.to_string());
        let opened = tensors(&bytes).and_then(|source| self.problem(&source).map(|problem| (source, problem)));
        let (source, problem) = at(&self.input, opened).inspect_err(fail)?;
        let mut ring = RingAttention::new(transport, &device, self.scheme.scheme(), &problem)?;
        let done = self.on_ring(&mut ring, &source, &problem);
        done.map(Some).inspect_err(|error| {
            // No rank leaves a file that is half written.
            let _ = std::fs::remove_file(self.unfinished(ring.transport().rank()));
            if !matches!(error, Error::Rank { .. }) {
                ring.transport().fail(&error.to_string());
            }
        })
    }
}

impl RunOptions {
    fn problem(&self, source: &SafeTensors) -> io::Result<AttentionProblem> {
        let found = |name| source.tensor(name).map_err(|_| wrong(format!("it has no tensor {name}")));
        let (q, k, v) = (found("q")?, found("k")?, found("v")?);
        let element = match q.dtype() {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            other => return Err(wrong(format!("q is {other:?}; it must be F32, F16 or BF16"))),
        };
        if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
            return Err(wrong("q, k and v must have one type"));
        }
        let sides = |shape: &[usize]| -> Option<[u32; 4]> {
            let sides: Vec<u32> = shape.iter().map(|side| u32::try_from(*side).ok()).collect::<Option<_>>()?;
            sides.try_into().ok()
        };
        let [of_q, of_k, of_v] = [&q, &k, &v].map(|tensor| sides(tensor.shape()));
        let four = || wrong("q, k and v must be [batch, seqlen, heads, head_dim]");
        let (of_q, of_k, of_v) = (of_q.ok_or_else(four)?, of_k.ok_or_else(four)?, of_v.ok_or_else(four)?);
        if of_q[0] != of_k[0] || of_q[3] != of_k[3] || of_k[..3] != of_v[..3] {
            return Err(wrong("the shapes of q, k and v do not fit each other"));
        }
        let shape = AttentionShape::new(of_q[0], of_q[2], of_q[1], of_q[3])
            .with_num_heads_kv(of_k[2])
            .with_seqlen_kv(of_k[1])
            .with_head_dim_v(of_v[3]);
        Ok(self.mask.of(AttentionProblem::new(shape).with_element(element)))
    }

    fn on_ring<T: Transport>(
        &self,
        ring: &mut RingAttention<T>,
        source: &SafeTensors,
        problem: &AttentionProblem,
    ) -> Result<(), Error> {
        let shape = &problem.shape;
        let (rows, keys) = (ring.rows().to_vec(), ring.keys().to_vec());
        for (name, operand, spans, length) in [
            ("q", Operand::Q, &rows, shape.seqlen_q),
            ("k", Operand::K, &keys, shape.seqlen_kv),
            ("v", Operand::V, &keys, shape.seqlen_kv),
        ] {
            let tensor = at(&self.input, source.tensor(name).map_err(|error| wrong(error.to_string())))?;
            let row = tensor.data().len() / (shape.batch as usize * length as usize).max(1);
            for (number, span) in spans.iter().enumerate() {
                for sequence in 0..shape.batch {
                    let first = (sequence as usize * length as usize + span.first as usize) * row;
                    let own = &tensor.data()[first..first + span.len as usize * row];
                    ring.set_rows(operand, number, sequence, 0, own)?;
                }
            }
        }
        ring.forward()?;
        let (o, lse) = (ring.get(Operand::O)?, ring.get(Operand::Lse)?);
        if self.parts { self.write_part(ring, problem, &o, &lse) } else { self.write_whole(ring, problem, &o, &lse) }
    }

    /// Where a rank writes, until it is done.
    fn unfinished(&self, rank: usize) -> PathBuf {
        let whole = if self.parts { self.part(rank) } else { self.output.clone().into_os_string() };
        PathBuf::from(join(whole, ".unfinished"))
    }

    fn part(&self, rank: usize) -> OsString {
        join(self.output.clone().into_os_string(), &format!(".rank{rank}"))
    }

    /// This rank's rows, span after span, as one sequence of rows.
    fn write_part<T: Transport>(
        &self,
        ring: &mut RingAttention<T>,
        problem: &AttentionProblem,
        o: &[u8],
        lse: &[u8],
    ) -> Result<(), Error> {
        let rank = ring.transport().rank();
        let spans: Vec<u64> = ring.rows().iter().flat_map(|span| [span.first.into(), span.len.into()]).collect();
        let path = self.unfinished(rank);
        let rows: Vec<u8> = spans.iter().flat_map(|number| number.to_le_bytes()).collect();
        // Spans of several sequences lie one behind the other, so their tensors are flat.
        let (target, header) = Target::new(&[
            ("o", dtype(problem.element), vec![o.len() as u64 / problem.element.size()], o.len() as u64),
            ("lse", "F32", vec![lse.len() as u64 / 4], lse.len() as u64),
            ("spans", "U64", vec![spans.len() as u64 / 2, 2], rows.len() as u64),
        ]);
        at(&path, target.create(&path, &header))?;
        let mut file = at(&path, reopen(&path))?;
        for (tensor, bytes) in [o, lse, &rows].into_iter().enumerate() {
            at(&path, target.write(&mut file, tensor, 0, bytes))?;
        }
        // Only if all ranks come so far.
        ring.transport().barrier()?;
        at(&path, std::fs::rename(&path, self.part(rank)))
    }

    /// All rows, by all ranks, in one file.
    fn write_whole<T: Transport>(
        &self,
        ring: &mut RingAttention<T>,
        problem: &AttentionProblem,
        o: &[u8],
        lse: &[u8],
    ) -> Result<(), Error> {
        let shape = &problem.shape;
        let [batch, rows, heads, dim] = [shape.batch, shape.seqlen_q, shape.num_heads, shape.head_dim_v].map(u64::from);
        let of_row = heads * dim * problem.element.size();
        let path = self.unfinished(0);
        let (target, header) = Target::new(&[
            ("o", dtype(problem.element), vec![batch, rows, heads, dim], batch * rows * of_row),
            ("lse", "F32", vec![batch, heads, rows], batch * heads * rows * 4),
        ]);
        if ring.transport().rank() == 0 {
            at(&path, target.create(&path, &header))?;
        }
        ring.transport().barrier()?;
        let spans = ring.rows().to_vec();
        let mut file = at(&path, reopen(&path))?;
        for (tensor, bytes, groups, of_row) in [(0, o, batch, of_row), (1, lse, batch * heads, 4)] {
            let mut rest = bytes;
            for range in ranges(groups, rows, &spans) {
                let (own, behind) = rest.split_at(((range.end - range.start) * of_row) as usize);
                rest = behind;
                at(&path, target.write(&mut file, tensor, range.start * of_row, own))?;
            }
        }
        drop(file);
        ring.transport().barrier()?;
        if ring.transport().rank() == 0 { at(&path, std::fs::rename(&path, &self.output)) } else { Ok(()) }
    }
}

fn join(mut path: OsString, behind: &str) -> OsString {
    path.push(behind);
    path
}

fn dtype(element: Element) -> &'static str {
    match element {
        Element::F16 => "F16",
        Element::Bf16 => "BF16",
        _ => "F32",
    }
}

/// The rows of spans in `[groups, length]`, span after span.
fn ranges(groups: u64, length: u64, spans: &[Span]) -> impl Iterator<Item = Range<u64>> {
    spans.iter().flat_map(move |span| {
        (0..groups).map(move |group| {
            let first = group * length + u64::from(span.first);
            first..first + u64::from(span.len)
        })
    })
}
