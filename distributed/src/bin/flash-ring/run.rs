//! Attention of tensors in a file.

use crate::arguments::RunOptions;
use crate::launch::{Failure, Work, launch, rows_at_once, spare, told};
use crate::safetensors::{Source, Target, wrong};
use crate::unfinished::{Destination, Unfinished};
use crate::words::answer;
use safetensors::Dtype;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, FlashAttention, Operand};
use wgpu_flash_attention_distributed::{Error, RingAttention, Span, Transport, wgpu_flash_attention};

pub fn run(options: &RunOptions) -> Result<(), Failure> {
    let start = Instant::now();
    let Some(Done { ranks, shape }) = launch(&options.ranks, options)? else { return Ok(()) };
    let output = options.output.display();
    let files = match (options.parts, ranks - 1) {
        (false, _) => output.to_string(),
        (true, 0) => format!("{output}.rank0"),
        (true, last) => format!("{output}.rank0 to .rank{last}"),
    };
    let AttentionShape { batch, seqlen_q, .. } = shape;
    let seconds = start.elapsed().as_secs_f64();
    answer(&format!("{files}: {seqlen_q} rows of {batch} sequences, by {ranks} ranks in {seconds:.2} s"))
}

/// More bytes than a path has.
const LONGEST_PATH: usize = 4096;

/// What was done.
pub struct Done {
    ranks: usize,
    shape: AttentionShape,
}

/// What a rank has open.
struct Files {
    source: Source,
    problem: AttentionProblem,
    /// Where this rank's rows go.
    destination: Destination,
    /// If this rank makes that file.
    made: Option<Unfinished>,
}

/// Names the file of an error.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::Work(format!("{}: {error}", path.display())))
}

impl Work for RunOptions {
    type Answer = Done;

    fn rank<T: Transport>(&self, mut transport: T, device: FlashAttention) -> Result<Option<Done>, Error> {
        let agreed = self.agree(&mut transport);
        told(&mut transport, agreed)?;
        let opened = self.open(transport.rank(), transport.ranks());
        let files = told(&mut transport, opened)?;
        let (problem, shape) = (files.problem.clone(), files.problem.shape);
        let mut ring = RingAttention::new(transport, &device, self.scheme.scheme(), &problem)?;
        let done = self.on_ring(&mut ring, files);
        told(ring.transport(), done)?;
        let ranks = ring.transport().ranks();
        Ok((ring.transport().rank() == 0).then_some(Done { ranks, shape }))
    }
}

impl RunOptions {
    /// Ranks that were started for different files would each write a part of one.
    fn agree(&self, transport: &mut impl Transport) -> Result<(), Error> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        let mut own = self.output.as_os_str().as_encoded_bytes().to_vec();
        // Longer ones are no paths.
        own.resize(LONGEST_PATH, 0);
        own.push(self.parts.into());
        for (rank, other) in transport.all_gather(&own)?.into_iter().enumerate() {
            let ((of_other, parts), (of_own, own_parts)) = (other.split_at(LONGEST_PATH), own.split_at(LONGEST_PATH));
            if of_other != of_own {
                let (found, expected) = (text(of_other), text(of_own));
                return Err(Error::Mismatch { rank, name: "OUTPUT".into(), found, expected });
            }
            if parts != own_parts {
                let [found, expected] = [parts, own_parts].map(|parts| (parts == [1]).to_string());
                return Err(Error::Mismatch { rank, name: "--parts".into(), found, expected });
            }
        }
        Ok(())
    }

    /// What can go wrong with files, does so here, before anything is computed.
    fn open(&self, rank: usize, ranks: usize) -> Result<Files, Error> {
        let source = at(&self.input, Source::open(&self.input))?;
        let problem = at(&self.input, self.problem(&source))?;
        let mut outputs = vec![self.output.clone()];
        if self.parts {
            let part = |rank| {
                let mut path = self.output.clone().into_os_string();
                path.push(format!(".rank{rank}"));
                path.into()
            };
            outputs = (0..ranks).map(part).collect();
        }
        let destinations = outputs.iter().map(|path| at(path, Destination::new(path)));
        let destinations = destinations.collect::<Result<Vec<_>, _>>()?;
        for (path, destination) in outputs.iter().zip(&destinations) {
            if destination.is(&self.input) {
                return at(path, Err(wrong("it would overwrite the input")));
            }
            destination.announce();
        }
        let own = if self.parts { rank } else { 0 };
        let destination = destinations[own].clone();
        let made = (own == rank).then(|| at(destination.unfinished(), destination.create())).transpose()?;
        Ok(Files { source, problem, destination, made })
    }

    fn problem(&self, source: &Source) -> io::Result<AttentionProblem> {
        let (q, k, v) = (source.tensor("q")?, source.tensor("k")?, source.tensor("v")?);
        let element = match q.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            other => return Err(wrong(format!("q is {other:?}; it must be F32, F16 or BF16"))),
        };
        if k.dtype != q.dtype || v.dtype != q.dtype {
            return Err(wrong("q, k and v must have one type"));
        }
        let sides = |shape: &[usize]| -> Option<[u32; 4]> {
            let sides: Vec<u32> = shape.iter().map(|side| u32::try_from(*side).ok()).collect::<Option<_>>()?;
            sides.try_into().ok()
        };
        let [of_q, of_k, of_v] = [&q, &k, &v].map(|tensor| sides(&tensor.shape));
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

    fn on_ring<T: Transport>(&self, ring: &mut RingAttention<T>, mut files: Files) -> Result<(), Error> {
        let problem = &files.problem;
        let AttentionShape { batch, num_heads, num_heads_kv, head_dim, head_dim_v, seqlen_q, seqlen_kv } =
            problem.shape;
        let (rows, keys) = (ring.rows().to_vec(), ring.keys().to_vec());
        for (name, operand, spans, length, width) in [
            ("q", Operand::Q, &rows, seqlen_q, [num_heads, head_dim]),
            ("k", Operand::K, &keys, seqlen_kv, [num_heads_kv, head_dim]),
            ("v", Operand::V, &keys, seqlen_kv, [num_heads_kv, head_dim_v]),
        ] {
            let row = width.map(u64::from).iter().product::<u64>() * problem.element.size();
            let step = rows_at_once(row);
            let mut bytes = Vec::new();
            for (number, span) in spans.iter().enumerate() {
                for (sequence, first) in (0..batch).flat_map(|of| (0..span.len).step_by(step).map(move |at| (of, at))) {
                    let count = (span.len - first).min(step as u32);
                    bytes.resize((u64::from(count) * row) as usize, 0);
                    let before = u64::from(sequence) * u64::from(length) + u64::from(span.first + first);
                    at(&self.input, files.source.read(name, before * row, &mut bytes))?;
                    ring.set_rows(operand, number, sequence, first, &bytes)?;
                }
            }
        }
        // Twice, since a span is read before it joins the others.
        let of_row = (u64::from(head_dim_v) * problem.element.size() + 4) * u64::from(num_heads) * u64::from(batch);
        let own: u64 = rows.iter().map(|span| u64::from(span.len)).sum();
        spare(&self.ranks, own.checked_mul(of_row).and_then(|bytes| bytes.checked_mul(2)))?;
        ring.forward()?;
        let results = [ring.get(Operand::O)?, ring.get(Operand::Lse)?];
        if self.parts { write_part(ring, files, results) } else { write_whole(ring, files, results) }
    }
}

/// This rank's rows, span after span, as one sequence of rows.
fn write_part<T: Transport>(ring: &mut RingAttention<T>, files: Files, [o, lse]: [Vec<u8>; 2]) -> Result<(), Error> {
    let element = files.problem.element;
    let spans: Vec<u64> = ring.rows().iter().flat_map(|span| [span.first.into(), span.len.into()]).collect();
    let path = files.destination.unfinished();
    let rows: Vec<u8> = spans.iter().flat_map(|number| number.to_le_bytes()).collect();
    // Spans of several sequences lie one behind the other, so their tensors are flat.
    let target = Target::new(&[
        ("o", dtype(element), vec![o.len() as u64 / element.size()], o.len() as u64),
        ("lse", "F32", vec![lse.len() as u64 / 4], lse.len() as u64),
        ("spans", "U64", vec![spans.len() as u64 / 2, 2], rows.len() as u64),
    ]);
    let mut file = at(path, Unfinished::open(path))?;
    at(path, target.begin(&mut file, &[]))?;
    for (tensor, bytes) in [o, lse, rows].iter().enumerate() {
        at(path, target.write(&mut file, tensor, 0, bytes))?;
    }
    at(path, target.end(&mut file))?;
    at(path, close(file))?;
    // Only if all ranks come so far.
    ring.transport().barrier()?;
    at(path, files.made.map_or(Ok(()), Unfinished::finish))?;
    // What rank 0 says is of all ranks.
    ring.transport().barrier()
}

/// All rows, by all ranks, in one file.
fn write_whole<T: Transport>(ring: &mut RingAttention<T>, files: Files, results: [Vec<u8>; 2]) -> Result<(), Error> {
    let (shape, element) = (files.problem.shape, files.problem.element);
    let [batch, rows, heads, dim] = [shape.batch, shape.seqlen_q, shape.num_heads, shape.head_dim_v].map(u64::from);
    let of_row = heads * dim * element.size();
    let path = files.destination.unfinished();
    let target = Target::new(&[
        ("o", dtype(element), vec![batch, rows, heads, dim], batch * rows * of_row),
        ("lse", "F32", vec![batch, heads, rows], batch * heads * rows * 4),
    ]);
    // No safetensors file begins so.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let mark = (now | 1 << 63).to_le_bytes();
    if files.made.is_some() {
        at(path, Unfinished::open(path).and_then(|mut file| target.begin(&mut file, &mark)))?;
    }
    let mark = ring.transport().all_gather(&mark)?.swap_remove(0);
    let spans = ring.rows().to_vec();
    let mut file = at(path, Unfinished::open(path))?;
    let mut found = [0; 8];
    at(path, file.read_exact(&mut found))?;
    if found[..] != mark {
        return at(path, Err(wrong("it is not the file of rank 0: all ranks must see one folder")));
    }
    for (tensor, (bytes, (groups, of_row))) in results.iter().zip([(batch, of_row), (batch * heads, 4)]).enumerate() {
        let mut rest = &bytes[..];
        for range in ranges(groups, rows, &spans) {
            let (own, behind) = rest.split_at(((range.end - range.start) * of_row) as usize);
            rest = behind;
            at(path, target.write(&mut file, tensor, range.start * of_row, own))?;
        }
    }
    at(path, close(file))?;
    ring.transport().barrier()?;
    let Some(made) = files.made else { return Ok(()) };
    at(path, Unfinished::open(path).and_then(|mut file| target.end(&mut file).and_then(|()| close(file))))?;
    at(path, made.finish())
}

/// Waits until the bytes are stored: file systems of networks say only then that they are not.
fn close(file: File) -> io::Result<()> {
    file.sync_data()
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
