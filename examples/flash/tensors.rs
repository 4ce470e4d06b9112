//! Attention inputs and outputs as safetensors files.

use std::borrow::Cow;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, AuxType, Element, Operand};

use crate::arguments::Layout;
use crate::failure::{Failure, Result};

/// A whole safetensors file.
pub struct File {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Its header, which may be long, and where its data begins.
    header: Metadata,
    data: usize,
}

/// One tensor of a file.
pub struct Tensor<'a> {
    pub element: Element,
    pub dims: Vec<u32>,
    pub bytes: &'a [u8],
}

/// Q, K and V that fit each other.
pub struct Inputs<'a> {
    pub shape: AttentionShape,
    /// The order of the dimensions.
    pub layout: Layout,
    /// Where packed sequences begin, in Q and in K and V.
    pub cu_seqlens: Option<[Vec<u32>; 2]>,
    pub element: Element,
    pub q: &'a [u8],
    pub k: &'a [u8],
    pub v: &'a [u8],
    pub d_o: Option<&'a [u8]>,
    /// f32.
    pub d_lse: Option<&'a [u8]>,
    pub bias: Option<Bias<'a>>,
    pub mask: Option<Mask>,
    /// A logit for each query head, f32.
    pub sink: Option<&'a [u8]>,
    /// Of each sequence, where they are given.
    pub lengths: Option<[Vec<u32>; 2]>,
    /// `[heads]`, or `[batch, heads]`.
    pub alibi_slopes: Option<Vec<f32>>,
    /// Sequences, or 1 for all, and an id for each of their keys.
    pub document_ids: Option<(u32, Vec<u32>)>,
    /// Blocks of what counts, their rows and keys, and not 0 for each that is computed.
    pub block_mask: Option<BlockTensor<'a>>,
    /// What functions in the user's own WGSL read: words of this type.
    pub aux: Option<(AuxType, Cow<'a, [u8]>)>,
}

/// A number for each sequence, query head, row and key, or one for all of a dimension.
pub struct Bias<'a> {
    pub counts: [u32; 4],
    pub element: Element,
    pub bytes: &'a [u8],
}

/// A block mask: counts, rows and keys of a block, and a byte for each.
pub type BlockTensor<'a> = ([u32; 4], [u32; 2], &'a [u8]);

/// A bit for each, packed along the keys.
pub struct Mask {
    pub counts: [u32; 4],
    pub words: Vec<u32>,
}

impl File {
    /// A file, or what comes through a pipe where it is called `-`.
    pub fn read(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        let read = match path == Path::new("-") {
            true => io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes),
            false => std::fs::read(path),
        };
        let bytes = read.map_err(|error| Failure::new(format_args!("cannot read {}: {error}", path.display())))?;
        Self::of(path, bytes)
    }

    /// These bytes, as if they had been read there.
    pub fn of(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let (len, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| Failure::new(format_args!("{}: not a sound safetensors file: {error}", path.display())))?;
        // The header's length comes first.
        Ok(Self { path: path.to_owned(), bytes, header, data: size_of::<u64>() + len })
    }

    /// As it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A tensor in any type, if it is there.
    pub fn view(&self, name: &str) -> Option<TensorView<'_>> {
        let info = self.header.info(name)?;
        let data = &self.bytes[self.data..][info.data_offsets.0..info.data_offsets.1];
        TensorView::new(info.dtype, info.shape.clone(), data).ok()
    }

    /// The names of all tensors, in the order of the alphabet.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort_unstable();
        names
    }

    pub fn failure(&self, message: impl std::fmt::Display) -> Failure {
        Failure::new(format_args!("{}: {message}", self.path.display()))
    }

    /// The tensor of this name, in a type that attention can be computed in.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let view = self.view(name).ok_or_else(|| {
            let names = self.names();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.failure(format_args!("has no tensor '{name}'; it holds {}", shortened(&names)))
        })?;
        let element = match view.dtype() {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            other => {
                return Err(
                    self.failure(format_args!("'{name}' is stored as {other:?}; F32, F16 and BF16 can be used"))
                );
            }
        };
        let dims: Option<Vec<u32>> = view.shape().iter().map(|dim| u32::try_from(*dim).ok()).collect();
        let dims = dims.ok_or_else(|| {
            self.failure(format_args!("'{name}' has the shape {:?}; a dimension passes {}", view.shape(), u32::MAX))
        })?;
        Ok(Tensor { element, dims, bytes: view.data() })
    }

    /// Q, K and V, checked against each other.
    pub fn inputs(&self, layout: Layout) -> Result<Inputs<'_>> {
        let cu_seqlens = self.cu_seqlens()?;
        let layout = if cu_seqlens.is_some() { Layout::Packed } else { layout };
        let q = self.tensor("q")?;
        let k = self.tensor("k")?;
        let v = self.tensor("v")?;
        if q.element != k.element || q.element != v.element {
            let types = [&q, &k, &v].map(|tensor| tensor.element.name()).join(", ");
            return Err(self.failure(format_args!("q, k and v are stored as {types}; they must have one type")));
        }
        let [q_batch, q_heads, q_rows, q_dim] = self.dims("q", &q, layout)?;
        let [k_batch, k_heads, k_rows, k_dim] = self.dims("k", &k, layout)?;
        let [v_batch, v_heads, v_rows, v_dim] = self.dims("v", &v, layout)?;
        let differ = |what: &str| {
            let shapes = format!("q {:?}, k {:?}, v {:?}", q.dims, k.dims, v.dims);
            let order = match layout {
                Layout::Bhsd => "batch, heads, seqlen, dim",
                Layout::Bshd => "batch, seqlen, heads, dim",
                Layout::Packed => "all rows, heads, dim",
            };
            self.failure(format_args!("{what}: {shapes} (read as {order})"))
        };
        if q_batch != k_batch || q_batch != v_batch {
            return Err(differ("q, k and v differ in batch"));
        }
        if k_heads != v_heads || k_rows != v_rows {
            return Err(differ("k and v differ in heads or seqlen"));
        }
        if q_dim != k_dim {
            return Err(differ("q and k differ in their last dimension"));
        }
        if q_dim == 0 || v_dim == 0 {
            return Err(differ("a last dimension is 0"));
        }
        if q_heads.checked_rem(k_heads).unwrap_or(q_heads) != 0 {
            return Err(differ("the heads of q are not a multiple of those of k and v"));
        }
        let [batch, seqlen_q, seqlen_kv] = match &cu_seqlens {
            Some(sums) => self.extent_of(sums, [q_rows, k_rows])?,
            None => [q_batch, q_rows, k_rows],
        };
        let shape = AttentionShape::new(batch, q_heads, seqlen_q, q_dim)
            .with_num_heads_kv(k_heads)
            .with_seqlen_kv(seqlen_kv)
            .with_head_dim_v(v_dim);
        let d_o = self.optional("d_o")?;
        if let Some(d_o) = &d_o {
            if d_o.element != q.element {
                let types = [d_o.element, q.element].map(Element::name).join(" and q as ");
                return Err(self.failure(format_args!("d_o is stored as {types}; they must have one type")));
            }
            if self.dims("d_o", d_o, layout)? != [q_batch, q_heads, q_rows, v_dim] {
                let o = layout.dims_of(q_batch, q_heads, q_rows, v_dim);
                return Err(self.failure(format_args!("d_o has the shape {:?}, o {o:?}; they must be equal", d_o.dims)));
            }
        }
        let d_lse = self.optional("d_lse")?;
        if let Some(d_lse) = &d_lse {
            let lse = layout.lse_dims(q_batch, q_heads, q_rows);
            if d_lse.element != Element::F32 || d_lse.dims != lse {
                return Err(self.failure(format_args!(
                    "d_lse is {} of the shape {:?}; it must be f32 of {lse:?}",
                    d_lse.element.name(),
                    d_lse.dims
                )));
            }
            if d_o.is_none() {
                return Err(self.failure("has d_lse but no d_o; gradients need both, d_o may be zeros"));
            }
        }
        let (d_o, d_lse) = (d_o.map(|tensor| tensor.bytes), d_lse.map(|tensor| tensor.bytes));
        let (bias, mask, sink) = (self.bias(&shape)?, self.mask(&shape)?, self.sink(&shape)?);
        let (lengths, aux) = (self.lengths(&shape, cu_seqlens.is_some())?, self.aux()?);
        let (element, q, k, v) = (q.element, q.bytes, k.bytes, v.bytes);
        let (alibi_slopes, document_ids, block_mask) = (None, None, None);
        Ok(Inputs {
            shape,
            layout,
            cu_seqlens,
            element,
            q,
            k,
            v,
            d_o,
            d_lse,
            bias,
            mask,
            sink,
            lengths,
            alibi_slopes,
            document_ids,
            block_mask,
            aux,
        })
    }

    pub fn bias(&self, shape: &AttentionShape) -> Result<Option<Bias<'_>>> {
        let Some(bias) = self.optional("bias")? else { return Ok(None) };
        let counts = self.counts("bias", &bias.dims, shape)?;
        Ok(Some(Bias { counts, element: bias.element, bytes: bias.bytes }))
    }

    pub fn mask(&self, shape: &AttentionShape) -> Result<Option<Mask>> {
        let Some(view) = self.view("mask") else { return Ok(None) };
        if !matches!(view.dtype(), Dtype::BOOL | Dtype::U8) {
            return Err(self.failure(format_args!("'mask' is stored as {:?}; BOOL and U8 can be used", view.dtype())));
        }
        let dims: Vec<u32> = view.shape().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect();
        let counts = self.counts("mask", &dims, shape)?;
        let word = |keys: &[u8]| keys.iter().rev().fold(0, |word, key| word << 1 | u32::from(*key != 0));
        let rows = view.data().chunks(counts[3].max(1) as usize);
        Ok(Some(Mask { counts, words: rows.flat_map(|row| row.chunks(32).map(word)).collect() }))
    }

    pub fn sink(&self, shape: &AttentionShape) -> Result<Option<&[u8]>> {
        let Some(sink) = self.optional("sink")? else { return Ok(None) };
        if sink.element != Element::F32 || sink.dims != [shape.num_heads] {
            return Err(self.failure(format_args!(
                "sink is {} of the shape {:?}; it must be f32 with one for each head of q, [{}]",
                sink.element.name(),
                sink.dims,
                shape.num_heads
            )));
        }
        Ok(Some(sink.bytes))
    }

    /// seqlens_q and seqlens_kv, if one of them is given; the other then has the tensors' length throughout. Of packed sequences
    /// seqused_q and seqused_kv.
    fn lengths(&self, shape: &AttentionShape, is_packed: bool) -> Result<Option<[Vec<u32>; 2]>> {
        let (padded, used) = (["seqlens_q", "seqlens_kv"], ["seqused_q", "seqused_kv"]);
        let (names, others) = if is_packed { (used, padded) } else { (padded, used) };
        if let Some(other) = others.into_iter().find(|name| self.has(name)) {
            let tensors =
                if is_packed { "packed sequences have seqused_q and seqused_kv" } else { "it needs cu_seqlens_q" };
            return Err(self.failure(format_args!("has {other}, which nothing uses: {tensors}")));
        }
        let of = |name| self.integers(name, &[&[shape.batch]], "[batch]");
        let (q, kv) = (of(names[0])?.map(|(_, lengths)| lengths), of(names[1])?.map(|(_, lengths)| lengths));
        if q.is_none() && kv.is_none() {
            return Ok(None);
        }
        let rows = |sums: Vec<u32>| sums.windows(2).map(|sums| sums[1].saturating_sub(sums[0])).collect();
        let all: [Vec<u32>; 2] = match self.cu_seqlens()? {
            Some(sums) => sums.map(rows),
            None => [shape.seqlen_q, shape.seqlen_kv].map(|length| vec![length; shape.batch as usize]),
        };
        for ((name, lengths), all) in names.iter().zip([&q, &kv]).zip(&all).filter(|_| is_packed) {
            let mut of_each = lengths.iter().flatten().zip(all).enumerate();
            if let Some((batch, (length, rows))) = of_each.find(|(_, (length, rows))| length > rows) {
                return Err(self.failure(format_args!("{name}: sequence {batch} uses {length} of its {rows} rows")));
            }
        }
        let [all_q, all_kv] = all;
        Ok(Some([q.unwrap_or(all_q), kv.unwrap_or(all_kv)]))
    }

    /// cu_seqlens_q and cu_seqlens_kv, if sequences are packed.
    fn cu_seqlens(&self) -> Result<Option<[Vec<u32>; 2]>> {
        let names = ["cu_seqlens_q", "cu_seqlens_kv"];
        match names.map(|name| self.has(name)) {
            [false, false] => return Ok(None),
            [true, true] => {}
            [has_q, _] => {
                let (given, missing) = if has_q { (names[0], names[1]) } else { (names[1], names[0]) };
                return Err(self.failure(format_args!("has {given} and no {missing}; packed sequences need both")));
            }
        }
        let sums = |name: &str| -> Result<Vec<u32>> {
            let dims = self.view(name).map(|view| view.shape().to_vec()).unwrap_or_default();
            let len = u32::try_from(dims.iter().product::<usize>()).unwrap_or(u32::MAX);
            let sums = self.integers(name, &[&[len.max(1)]], "[batch + 1]")?;
            Ok(sums.map(|(_, sums)| sums).unwrap_or_default())
        };
        let (q, kv) = (sums(names[0])?, sums(names[1])?);
        if q.len() != kv.len() {
            let lens = [&q, &kv].map(|sums| sums.len().to_string()).join(" and ");
            return Err(
                self.failure(format_args!("cu_seqlens_q and cu_seqlens_kv have {lens} sums; both have batch + 1"))
            );
        }
        Ok(Some([q, kv]))
    }

    /// How many packed sequences there are, and the largest lengths, where the tensors have so many rows.
    fn extent_of(&self, sums: &[Vec<u32>; 2], rows: [u32; 2]) -> Result<[u32; 3]> {
        for ((sums, rows), [name, tensors]) in
            sums.iter().zip(rows).zip([["cu_seqlens_q", "q has"], ["cu_seqlens_kv", "k and v have"]])
        {
            let end = sums.last().copied().unwrap_or(0);
            if end != rows {
                return Err(self.failure(format_args!("{name} ends at {end}, and {tensors} {rows} rows")));
            }
        }
        let largest = |sums: &[u32]| sums.windows(2).map(|sums| sums[1].saturating_sub(sums[0])).max().unwrap_or(0);
        Ok([(sums[0].len() - 1) as u32, largest(&sums[0]), largest(&sums[1])])
    }

    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Slopes of ALiBi, if there are some.
    pub fn alibi_slopes(&self, shape: &AttentionShape) -> Result<Option<Vec<f32>>> {
        let Some(slopes) = self.optional("alibi_slopes")? else { return Ok(None) };
        let (of_heads, of_both) = (vec![shape.num_heads], vec![shape.batch, shape.num_heads]);
        if slopes.element != Element::F32 || (slopes.dims != of_heads && slopes.dims != of_both) {
            return Err(self.failure(format_args!(
                "alibi_slopes is {} of the shape {:?}; it must be f32 of {of_heads:?} or {of_both:?}",
                slopes.element.name(),
                slopes.dims
            )));
        }
        Ok(Some(crate::elements::decode(Element::F32, slopes.bytes).map(|slope| slope as f32).collect()))
    }

    /// The documents of the keys, if there are some: sequences, or 1 for all, and ids.
    pub fn document_ids(&self, shape: &AttentionShape) -> Result<Option<(u32, Vec<u32>)>> {
        let (of_all, of_each) = ([1, shape.seqlen_kv], [shape.batch, shape.seqlen_kv]);
        let ids = self.integers("document_ids", &[&of_all, &of_each], "[batch or 1, seqlen_kv]")?;
        Ok(ids.map(|(dims, ids)| (dims[0], ids)))
    }

    /// Which blocks of these rows and keys are computed, if the file says so.
    pub fn block_mask(&self, shape: &AttentionShape, sides: [u32; 2]) -> Result<Option<BlockTensor<'_>>> {
        let Some(view) = self.view("block_mask") else { return Ok(None) };
        if !matches!(view.dtype(), Dtype::BOOL | Dtype::U8) {
            let dtype = view.dtype();
            return Err(self.failure(format_args!("'block_mask' is stored as {dtype:?}; BOOL and U8 can be used")));
        }
        let whole = crate::blocks::counts_of(shape, sides);
        let dims: Vec<u32> = view.shape().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect();
        let fits = |counts: &[u32; 4]| {
            counts.iter().zip(whole).enumerate().all(|(n, (count, whole))| *count == whole || n < 2 && *count == 1)
        };
        match <[u32; 4]>::try_from(&dims[..]).ok().filter(fits) {
            Some(counts) => Ok(Some((counts, sides, view.data()))),
            None => Err(self.failure(format_args!(
                "'block_mask' has the shape {dims:?}; in blocks of {} rows and {} keys it must be {whole:?}, the first two or 1",
                sides[0], sides[1]
            ))),
        }
    }

    /// Numbers of any shape: f32, or integers of any type, which WGSL reads as u32.
    pub fn aux(&self) -> Result<Option<(AuxType, Cow<'_, [u8]>)>> {
        let Some(view) = self.view("aux") else { return Ok(None) };
        match view.dtype() {
            Dtype::F32 => return Ok(Some((AuxType::F32, view.data().into()))),
            Dtype::U32 => return Ok(Some((AuxType::U32, view.data().into()))),
            _ => {}
        }
        let Some(integers) = integers_of(&view) else {
            return Err(self.failure(format_args!(
                "'aux' is stored as {:?}; F32 and integers of any type can be used: store it as F32, or BOOL as U8",
                view.dtype()
            )));
        };
        let words: std::result::Result<Vec<[u8; 4]>, i128> =
            integers.map(|integer| u32::try_from(integer).map(u32::to_le_bytes).map_err(|_| integer)).collect();
        match words {
            Ok(words) => Ok(Some((AuxType::U32, words.concat().into()))),
            Err(wrong) => Err(self.failure(format_args!(
                "'aux' holds {wrong}; WGSL reads integers as u32, 0 to 4294967295: add an offset, or store aux as F32"
            ))),
        }
    }

    /// A tensor of integers of any type, none of them negative, of one of these shapes. Its shape, and the integers.
    pub fn integers(&self, name: &str, shapes: &[&[u32]], wanted: &str) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
        self.integers_or(name, shapes, wanted, |_| None)
    }

    /// The same, where `other` may say what stands for an integer that is no u32.
    pub fn integers_or(
        &self,
        name: &str,
        shapes: &[&[u32]],
        wanted: &str,
        other: impl Fn(i128) -> Option<u32>,
    ) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
        let Some(view) = self.view(name) else { return Ok(None) };
        let dims: Vec<u32> = view.shape().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect();
        let Some(fitting) = shapes.iter().find(|shape| ***shape == dims) else {
            let most = shapes.last().copied().unwrap_or_default();
            return Err(self.failure(format_args!("'{name}' has the shape {dims:?}; it must be {wanted} = {most:?}")));
        };
        let Some(integers) = integers_of(&view) else {
            let dtype = view.dtype();
            return Err(self.failure(format_args!("'{name}' is stored as {dtype:?}; integers of any type can be used")));
        };
        let in_u32 = |integer: i128| u32::try_from(integer).ok().or_else(|| other(integer));
        let lengths: Option<Vec<u32>> = integers.clone().map(in_u32).collect();
        lengths.map(|lengths| Some((fitting.to_vec(), lengths))).ok_or_else(|| {
            let wrong = integers.clone().find(|integer| in_u32(*integer).is_none()).unwrap_or_default();
            self.failure(format_args!("'{name}' holds {wrong}; only 0 to 4294967295 can be used"))
        })
    }

    /// The dimensions of a tensor of entries, each that of the problem or 1.
    fn counts(&self, name: &str, dims: &[u32], shape: &AttentionShape) -> Result<[u32; 4]> {
        let whole = [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv];
        let fits = |counts: &[u32; 4]| counts.iter().zip(whole).all(|(count, whole)| *count == 1 || *count == whole);
        <[u32; 4]>::try_from(dims).ok().filter(fits).ok_or_else(|| {
            self.failure(format_args!(
                "'{name}' has the shape {dims:?}; it must be [batch, heads, seqlen_q, seqlen_kv] = {whole:?}, or 1 in a place"
            ))
        })
    }

    /// The tensor of this name, if there is one.
    pub fn optional(&self, name: &str) -> Result<Option<Tensor<'_>>> {
        match self.has(name) {
            true => self.tensor(name).map(Some),
            false => Ok(None),
        }
    }

    /// `[batch, heads, seqlen, dim]`, whatever the order in the file.
    pub fn dims(&self, name: &str, tensor: &Tensor, layout: Layout) -> Result<[u32; 4]> {
        match (tensor.dims.as_slice(), layout) {
            (&[batch, heads, rows, dim], Layout::Bhsd) | (&[batch, rows, heads, dim], Layout::Bshd) => {
                Ok([batch, heads, rows, dim])
            }
            (&[rows, heads, dim], Layout::Packed) => Ok([1, heads, rows, dim]),
            (dims, Layout::Packed) => Err(self.failure(format_args!(
                "'{name}' has {} dimensions {dims:?}; packed sequences need 3: all rows, heads, dim",
                dims.len()
            ))),
            (dims, _) => {
                let hint = if dims.len() == 3 { ", or 3 with cu_seqlens_q and cu_seqlens_kv" } else { "" };
                Err(self.failure(format_args!("'{name}' has {} dimensions {dims:?}; 4 are needed{hint}", dims.len())))
            }
        }
    }
}

impl Layout {
    pub fn of(self, shape: &AttentionShape) -> AttentionLayout {
        match self {
            Layout::Bhsd => AttentionLayout::bhsd(shape),
            // Strides of rows and heads alone mean something where sequences are packed.
            Layout::Bshd | Layout::Packed => AttentionLayout::bshd(shape),
        }
    }

    /// The dimensions of a tensor with so many rows in a sequence, or in all that are packed.
    pub fn dims_of(self, batch: u32, heads: u32, rows: u32, dim: u32) -> Vec<u32> {
        match self {
            Layout::Bhsd => vec![batch, heads, rows, dim],
            Layout::Bshd => vec![batch, rows, heads, dim],
            Layout::Packed => vec![rows, heads, dim],
        }
    }

    /// Those of LSE.
    pub fn lse_dims(self, batch: u32, heads: u32, rows: u32) -> Vec<u32> {
        match self {
            Layout::Bhsd | Layout::Bshd => vec![batch, heads, rows],
            Layout::Packed => vec![heads, rows],
        }
    }
}

/// The entries of a tensor of integers, of any type of them.
fn integers_of<'a>(view: &TensorView<'a>) -> Option<impl Iterator<Item = i128> + Clone + use<'a>> {
    let (size, is_signed) = match view.dtype() {
        Dtype::U8 => (1, false),
        Dtype::I8 => (1, true),
        Dtype::U16 => (2, false),
        Dtype::I16 => (2, true),
        Dtype::U32 => (4, false),
        Dtype::I32 => (4, true),
        Dtype::U64 => (8, false),
        Dtype::I64 => (8, true),
        _ => return None,
    };
    Some(view.data().chunks_exact(size).map(move |bytes| {
        let fill = if is_signed && bytes[size - 1] > 127 { 0xff } else { 0 };
        let mut all = [fill; 16];
        all[..size].copy_from_slice(bytes);
        i128::from_le_bytes(all)
    }))
}

/// Names for a message: all of a few, the first of many, none longer than a line can bear.
fn shortened(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut list: Vec<String> = names.iter().take(SHOWN).map(|name| name.chars().take(40).collect()).collect();
    if names.len() > SHOWN {
        list.push(format!("{} more", names.len() - SHOWN));
    }
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

/// What a run computes, as bytes.
pub struct Outputs {
    pub o: Vec<u8>,
    pub lse: Vec<u8>,
    /// Those of the problem's inputs that have one; empty without d_o.
    pub gradients: Vec<(Operand, Vec<u8>)>,
    /// Of one head, and of how many rows, if they are asked for.
    pub probabilities: Option<(u32, Vec<u8>)>,
}

/// The bytes of a safetensors file with o and lse, and the gradients if there are any, that of a bias in its shape and type.
pub fn encoded(
    problem: &AttentionProblem,
    layout: Layout,
    [element, gradient_element]: [Element; 2],
    bias: Option<([u32; 4], Element)>,
    outputs: &Outputs,
) -> Result<Vec<u8>> {
    let failed = |error| Failure::new(format_args!("the result is no safetensors file: {error}"));
    let dtype = |element| match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        other => crate::elements::unknown(other),
    };
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } = problem.shape;
    let (rows_q, rows_kv) = (problem.total_q().unwrap_or(seqlen_q), problem.total_kv().unwrap_or(seqlen_kv));
    let in_usize = |dims: Vec<u32>| dims.into_iter().map(|dim| dim as usize).collect::<Vec<_>>();
    let o_dims = in_usize(layout.dims_of(batch, num_heads, rows_q, head_dim_v));
    let mut tensors = vec![
        ("o", dtype(element), o_dims, &outputs.o),
        ("lse", Dtype::F32, in_usize(layout.lse_dims(batch, num_heads, rows_q)), &outputs.lse),
    ];
    if let Some((rows, bytes)) = &outputs.probabilities {
        let dims = [batch, 1, *rows, seqlen_kv].map(|dim| dim as usize).to_vec();
        tensors.push(("probabilities", Dtype::F32, dims, bytes));
    }
    for (operand, bytes) in &outputs.gradients {
        let of_element = |heads, rows, dim| (gradient_element, layout.dims_of(batch, heads, rows, dim));
        let (element, dims) = match operand {
            Operand::Dq => of_element(num_heads, rows_q, head_dim),
            Operand::Dk => of_element(num_heads_kv, rows_kv, head_dim),
            Operand::Dv => of_element(num_heads_kv, rows_kv, head_dim_v),
            Operand::DBias => bias.map_or((Element::F32, Vec::new()), |(counts, element)| (element, counts.to_vec())),
            _ => (Element::F32, vec![num_heads]),
        };
        tensors.push((operand.name(), dtype(element), in_usize(dims), bytes));
    }
    let views = tensors.into_iter().map(|(name, dtype, dims, bytes)| Ok((name, TensorView::new(dtype, dims, bytes)?)));
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    safetensors::serialize(views, None).map_err(failed)
}
