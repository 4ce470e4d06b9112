use crate::attention::{Asked, AttentionOutput, expect, number, output, words};
use crate::backend::{AppendInputs, AttentionBackend, CachedInputs, MaybeFloat, MaybeInt};
use crate::buffers::element;
use crate::device::{cube_device, installed};
use crate::error::Error;
use crate::options::AttentionOptions;
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};
use wgpu_flash_attention::{
    AppendProblem, AttentionShape, CacheElement, KvCache as CacheLayout, Rotary as RotaryProblem, RotaryPairs,
};

/// Rotary embeddings of keys and queries. The tables hold every scaling.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Cosines, f32 `[positions, rotary_dim / 2]`. Dimensions from rotary_dim on are not rotated.
    pub cos: Tensor<2>,
    /// Sines, likewise.
    pub sin: Tensor<2>,
    /// Which dimensions turn together: neighbours (GPT-J, llama in GGUF files), or halves (NeoX, files of Hugging Face's hub).
    pub pairs: RotaryPairs,
}

/// Keys and values of past tokens, `[batch, capacity]` of each KV head, for generation. Each sequence has a length of its own, which
/// stays on the GPU. Nothing here has a gradient.
///
/// ```no_run
/// use burn::tensor::{Distribution, Tensor};
/// use wgpu_flash_attention_burn::{AttentionOptions, CacheElement, KvCache};
///
/// let device = wgpu_flash_attention_burn::init()?;
/// let token = |heads| Tensor::<4>::random([1, heads, 1, 64], Distribution::Default, &device);
/// let mut cache = KvCache::new(1, 3, 8192, [64, 64], CacheElement::F16, &device);
/// for _ in 0..10 {
///     cache.append(token(3), token(3))?;
///     let output = cache.attention(token(9), &AttentionOptions::new().with_causal())?;
///     assert_eq!(output.o.dims(), [1, 9, 1, 64]);
/// }
/// # Ok::<(), wgpu_flash_attention_burn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    k: Tensor<1, Int>,
    v: Tensor<1, Int>,
    seqlens: Tensor<1, Int>,
    shape: AttentionShape,
    element: CacheElement,
    /// Tokens of the longest sequence.
    len: usize,
}

impl KvCache {
    /// An empty cache for `batch` sequences of at most `capacity` tokens, with K and V of these head dimensions, stored as `element`:
    /// f32, f16, bf16, or int8 with a scale for each token and head. The type of new tokens may be another.
    pub fn new(
        batch: usize,
        num_heads_kv: usize,
        capacity: usize,
        [head_dim, head_dim_v]: [usize; 2],
        element: CacheElement,
        device: &Device,
    ) -> Self {
        let shape = AttentionShape::new(number(batch), number(num_heads_kv), 1, number(head_dim))
            .with_seqlen_kv(number(capacity))
            .with_head_dim_v(number(head_dim_v));
        let layout = CacheLayout::contiguous(&shape, element);
        // Rows of int8 are words.
        let entries_of_word = if matches!(element, CacheElement::F16 | CacheElement::Bf16) { 2 } else { 1 };
        let words = |entries: Option<u64>| {
            let words = entries.unwrap_or(u64::MAX).div_ceil(entries_of_word);
            Tensor::zeros([words.max(1) as usize], (device, DType::I32))
        };
        Self {
            k: words(layout.required_len_of_k(&shape)),
            v: words(layout.required_len_of_v(&shape)),
            seqlens: Tensor::zeros([batch], (device, DType::I32)),
            shape,
            element,
            len: 0,
        }
    }

    /// Tokens of the longest sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no sequence has a token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that each sequence may have.
    pub fn capacity(&self) -> usize {
        self.shape.seqlen_kv as usize
    }

    /// Tokens of each sequence, i32 `[batch]`.
    pub fn seqlens(&self) -> Tensor<1, Int> {
        self.seqlens.clone()
    }

    /// Says how many tokens each sequence has, `[batch]`, at most `longest`: to go back, or after an append of sequences that were
    /// padded to one length.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::CacheFull`] if `longest` is more than the capacity.
    pub fn set_seqlens(&mut self, seqlens: Tensor<1, Int>, longest: usize) -> Result<(), Error> {
        expect("seqlens", &seqlens.dims(), &[self.shape.batch as usize], "[batch]")?;
        if longest > self.capacity() {
            return Err(Error::CacheFull { len: 0, new: longest, capacity: self.capacity() });
        }
        self.seqlens = Tensor::from_dispatch(words(seqlens));
        self.len = longest;
        Ok(())
    }

    /// Appends new tokens: K `[batch, num_heads_kv, new, head_dim]` and V `[batch, num_heads_kv, new, head_dim_v]`, of one type. The cache
    /// is written in place, unless a clone of it is alive.
    ///
    /// # Errors
    /// [`Error::CacheFull`], [`Error::Shape`], [`Error::Type`], [`Error::NotInstalled`], [`Error::NotWgpu`], [`Error::Attention`].
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> Result<(), Error> {
        self.append_all(k, v, None).map(|_| ())
    }

    /// As [`append`](Self::append), with K rotated by its position. Returns Q `[batch, num_heads, new, head_dim]`, rotated too.
    ///
    /// # Errors
    /// Those of `append`.
    pub fn append_rotated(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        rotary: &Rotary,
    ) -> Result<Tensor<4>, Error> {
        let rotated = self.append_all(k, v, Some((q, rotary)))?;
        Ok(rotated.expect("an append that rotates Q returns it"))
    }

    fn append_all(
        &mut self,
        k: Tensor<4>,
        v: Tensor<4>,
        rotated: Option<(Tensor<4>, &Rotary)>,
    ) -> Result<Option<Tensor<4>>, Error> {
        let installed = installed(&cube_device(&k.device())?, "k")?;
        let AttentionShape { batch, num_heads_kv, head_dim, head_dim_v, .. } = self.shape;
        let new = k.dims()[2];
        let rows = |dim: u32| [batch as usize, num_heads_kv as usize, new, dim as usize];
        expect("k", &k.dims(), &rows(head_dim), "[batch, num_heads_kv, new, head_dim]")?;
        expect("v", &v.dims(), &rows(head_dim_v), "[batch, num_heads_kv, new, head_dim_v]")?;
        if v.dtype() != k.dtype() {
            return Err(Error::Type { tensor: "v", found: v.dtype(), expected: "the type of K" });
        }
        if self.len + new > self.capacity() {
            return Err(Error::CacheFull { len: self.len, new, capacity: self.capacity() });
        }
        let mut shape = self.shape;
        shape.seqlen_q = number(new);
        let mut q_and_tables = [const { MaybeFloat::None }; 3];
        let mut rotary_problem = None;
        if let Some((q, rotary)) = rotated {
            let num_heads = q.dims()[1];
            expect(
                "q",
                &q.dims(),
                &[batch as usize, num_heads, new, head_dim as usize],
                "[batch, num_heads, new, head_dim]",
            )?;
            if q.dtype() != k.dtype() {
                return Err(Error::Type { tensor: "q", found: q.dtype(), expected: "the type of K" });
            }
            shape.num_heads = number(num_heads);
            let [positions, pairs] = rotary.cos.dims();
            expect("sin", &rotary.sin.dims(), &[positions, pairs], "the shape of cos")?;
            let (rotary_dim, positions) = (number(2 * pairs), number(positions));
            rotary_problem = Some(match rotary.pairs {
                RotaryPairs::Interleaved => RotaryProblem::interleaved(rotary_dim, positions),
                _ => RotaryProblem::halves(rotary_dim, positions),
            });
            let table = |table: &Tensor<2>| MaybeFloat::Some(table.clone().cast(DType::F32).into_dispatch());
            q_and_tables = [MaybeFloat::Some(q.into_dispatch()), table(&rotary.cos), table(&rotary.sin)];
        }
        let layout = CacheLayout::contiguous(&shape, self.element);
        let mut append =
            AppendProblem::new(shape, layout).with_element(element(k.dtype(), "k")?).with_new_cache_seqlens();
        if let Some(rotary) = rotary_problem {
            append = append.with_rotary(rotary).with_rotated_q();
        }
        installed.check_append(&append)?;
        let [q, cos, sin] = q_and_tables;
        // The only owners, so that they can be written in place.
        let seqlens = &self.seqlens;
        let [k_cache, v_cache] = [&mut self.k, &mut self.v].map(|words| std::mem::replace(words, seqlens.clone()));
        let (k_cache, v_cache) = (k_cache.into_dispatch(), v_cache.into_dispatch());
        let seqlens = seqlens.clone().into_dispatch();
        let (k, v) = (k.into_dispatch(), v.into_dispatch());
        let inputs = AppendInputs::<Dispatch> { k_cache, v_cache, seqlens, k, v, q, cos, sin };
        let appended = Dispatch::flash_attention_append(inputs, append);
        self.k = Tensor::from_dispatch(appended.k_cache);
        self.v = Tensor::from_dispatch(appended.v_cache);
        self.seqlens = Tensor::from_dispatch(appended.seqlens);
        self.len += new;
        Ok(match appended.q {
            MaybeFloat::None => None,
            MaybeFloat::Some(q) => Some(Tensor::from_dispatch(q)),
        })
    }

    /// Attention of Q `[batch, num_heads, seqlen_q, head_dim]` over the tokens of each sequence. With
    /// [`AttentionOptions::with_causal`], the last row stands at the last token. A bias and a mask have `capacity` keys. Options for
    /// packed sequences, lengths and blocks are refused.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Type`], [`Error::NotInstalled`], [`Error::NotWgpu`], [`Error::Attention`].
    pub fn attention(&self, q: Tensor<4>, options: &AttentionOptions) -> Result<AttentionOutput, Error> {
        let installed = installed(&cube_device(&q.device())?, "q")?;
        let AttentionShape { batch, head_dim, .. } = self.shape;
        let [_, num_heads, seqlen_q, _] = q.dims();
        let expected = [batch as usize, num_heads, seqlen_q, head_dim as usize];
        expect("q", &q.dims(), &expected, "[batch, num_heads, seqlen_q, head_dim] of the cache")?;
        for (tensor, given) in [
            ("cu_seqlens_q", options.cu_seqlens.as_ref().map(|[(numbers, _), _]| numbers)),
            ("seqlens_q", options.seqlens_q.as_ref()),
            ("seqlens_kv", options.seqlens_kv.as_ref()),
        ] {
            if let Some(numbers) = given {
                let expected = "no lengths but those of the cache".to_owned();
                return Err(Error::Shape { tensor, found: numbers.dims().to_vec(), expected });
            }
        }
        let mut shape = self.shape;
        (shape.num_heads, shape.seqlen_q) = (number(num_heads), number(seqlen_q));
        let mut asked = Asked::of(options, shape, q.dtype())?;
        let layout = CacheLayout::contiguous(&shape, self.element);
        asked.question.problem = asked.question.problem.with_cache(layout).with_seqlens_kv_at_call();
        asked.check(&installed, options, false)?;
        asked.others.tables.seqlens_kv = MaybeInt::Some(self.seqlens.clone().into_dispatch());
        let inputs = CachedInputs::<Dispatch> {
            q: q.into_dispatch(),
            k: self.k.clone().into_dispatch(),
            v: self.v.clone().into_dispatch(),
            others: asked.others,
        };
        Ok(output(Dispatch::flash_attention_cached(inputs, asked.question)))
    }
}
