use super::shape::AttentionShape;

/// How long each sequence is, where they differ, and where it lies, where they are packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// In the rows of Q and of all that has its rows.
    pub q: LengthsOf,
    /// In the rows of K and V.
    pub kv: LengthsOf,
}

/// The same, in the rows of Q or in those of K and V.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LengthsOf {
    /// How many rows each sequence has: all that there is room for, if none are given.
    pub seqlens: Known,
    /// If sequences are packed: one behind the other, without padding.
    pub packed: Option<Packed>,
}

/// Packed sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Rows of the tensor.
    pub total: u32,
    /// Where each sequence begins and the last one ends, `[batch + 1]`.
    pub cu_seqlens: Known,
}

impl Packed {
    /// By sums that are a part of the problem; the last one is the end.
    pub fn by(cu_seqlens: Vec<u32>) -> Self {
        Self { total: cu_seqlens.last().copied().unwrap_or(0), cu_seqlens: Known::Now(cu_seqlens) }
    }

    /// By sums that each call brings.
    pub fn at_call(total: u32) -> Self {
        Self { total, cu_seqlens: Known::AtCall }
    }
}

/// Numbers, one for each sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Known {
    /// There are none.
    #[default]
    Never,
    /// A part of the problem.
    Now(Vec<u32>),
    /// In a buffer, at each call.
    AtCall,
}

/// Which of the two sides of the score matrix, and its names: `seqlens`, `cu_seqlens`, `seqlen`.
type Side<'a> = (&'a LengthsOf, [&'static str; 3], u32);

impl LengthsOf {
    /// Whether the lengths are in a buffer at each call.
    pub fn has_seqlens_at_call(&self) -> bool {
        self.seqlens == Known::AtCall
    }

    /// Whether the sums are in a buffer at each call.
    pub fn has_sums_at_call(&self) -> bool {
        self.packed.as_ref().is_some_and(|packed| packed.cu_seqlens == Known::AtCall)
    }

    /// Whether a call says how long sequences are.
    pub fn is_at_call(&self) -> bool {
        self.has_seqlens_at_call() || self.has_sums_at_call()
    }

    /// First row and length of a sequence, of which there are `most` at most. Before a call that says more, it begins at 0 and
    /// has them all. A problem that planning refuses may have any numbers.
    fn of(&self, batch: u32, most: u32) -> (u32, u32) {
        let at = |numbers: &[u32], n: usize| numbers.get(n).copied().unwrap_or(0);
        let batch = batch as usize;
        let (first, room) = match self.packed.as_ref().map(|packed| &packed.cu_seqlens) {
            Some(Known::Now(sums)) => (at(sums, batch), at(sums, batch + 1).saturating_sub(at(sums, batch))),
            _ => (0, most),
        };
        let length = if let Known::Now(seqlens) = &self.seqlens { at(seqlens, batch) } else { room };
        (first, length.min(room).min(most))
    }
}

impl Lengths {
    /// Whether a call says how long sequences are.
    pub fn are_at_call(&self) -> bool {
        self.q.is_at_call() || self.kv.is_at_call()
    }

    /// How many sequences are known, where some are.
    pub fn known(&self) -> Option<usize> {
        let of = |side: &LengthsOf| match (&side.seqlens, side.packed.as_ref().map(|packed| &packed.cu_seqlens)) {
            (Known::Now(seqlens), _) => Some(seqlens.len()),
            (_, Some(Known::Now(sums))) => Some(sums.len()),
            _ => None,
        };
        of(&self.q).or(of(&self.kv))
    }

    /// First row and length of a sequence in Q, then in K and V.
    pub fn of(&self, shape: &AttentionShape, batch: u32) -> [(u32, u32); 2] {
        [self.q.of(batch, shape.seqlen_q), self.kv.of(batch, shape.seqlen_kv)]
    }

    fn sides(&self, shape: &AttentionShape) -> [Side<'_>; 2] {
        [
            (&self.q, ["seqlens_q", "cu_seqlens_q", "seqlen_q"], shape.seqlen_q),
            (&self.kv, ["seqlens_kv", "cu_seqlens_kv", "seqlen_kv"], shape.seqlen_kv),
        ]
    }

    /// What makes them no lengths for a problem of this shape, if anything does.
    pub fn fault(&self, shape: &AttentionShape) -> Option<(&'static str, String)> {
        if self.kv.packed.is_some() && self.q.packed.is_none() {
            return Some(("cu_seqlens_kv", "K and V are packed, and Q is not; pack Q too".into()));
        }
        self.sides(shape)
            .into_iter()
            .find_map(|side| fault_of_sums(side, shape.batch).or_else(|| fault_of(side, shape.batch)))
    }

    /// Words of the table below.
    pub fn table_len(&self, batch: u32) -> u64 {
        let numbers = if self.q.packed.is_some() { 4 } else { 2 };
        numbers * (u64::from(batch) + 1)
    }

    /// The words of `shaders/slots/lengths/`; 0 for what calls say. Packed sequences have more of them than others.
    pub fn table(&self, shape: &AttentionShape, is_bottom_right: bool) -> Vec<u32> {
        let mut words = vec![u32::from(is_bottom_right), shape.batch];
        let sequences = 0..shape.batch;
        for side in 0..2 {
            words.extend(sequences.clone().map(|batch| self.of(shape, batch)[side].1));
        }
        if self.q.packed.is_some() {
            for side in 0..2 {
                words.extend(sequences.clone().map(|batch| self.of(shape, batch)[side].0));
            }
            words.extend([&self.q, &self.kv].map(|side| side.packed.as_ref().map_or(0, |packed| packed.total)));
        }
        words
    }
}

/// What is wrong with where packed sequences begin, if anything is.
fn fault_of_sums((side, [_, name, of_tensor], most): Side<'_>, batch: u32) -> Option<(&'static str, String)> {
    let packed = side.packed.as_ref()?;
    let Known::Now(sums) = &packed.cu_seqlens else { return None };
    if sums.len() as u64 != u64::from(batch) + 1 {
        let reason =
            format!("{} sums are given for {batch} sequences, which have {}", sums.len(), u64::from(batch) + 1);
        return Some((name, reason));
    }
    if sums[0] != 0 {
        return Some((name, format!("they start at {}; the first sum is 0", sums[0])));
    }
    sums.windows(2).enumerate().find_map(|(batch, sums)| {
        let (first, end) = (sums[0], sums[1]);
        if end < first {
            return Some((name, format!("they fall from {first} to {end} at sequence {batch}")));
        }
        let rows = end - first;
        let reason = format!("sequence {batch} has {rows} rows; the problem has {of_tensor} = {most}");
        (rows > most).then_some((name, reason))
    })
}

/// What is wrong with how long sequences are, if anything is.
fn fault_of((side, [name, sums, of_tensor], most): Side<'_>, batch: u32) -> Option<(&'static str, String)> {
    let cu_seqlens = side.packed.as_ref().map(|packed| &packed.cu_seqlens);
    let seqlens = match (&side.seqlens, cu_seqlens) {
        (Known::Now(_), Some(Known::AtCall)) | (Known::AtCall, Some(Known::Now(_))) => {
            return Some((
                name,
                format!("{sums} and they must both be parts of the problem, or both come at the call"),
            ));
        }
        (Known::Now(seqlens), _) => seqlens,
        (Known::Never | Known::AtCall, _) => return None,
    };
    if seqlens.len() as u64 != u64::from(batch) {
        return Some((name, format!("{} lengths are given for {batch} sequences", seqlens.len())));
    }
    if let Some(Known::Now(sums)) = cu_seqlens {
        let room = |batch: usize| sums[batch + 1] - sums[batch];
        let (batch, length) = seqlens.iter().enumerate().find(|(batch, length)| **length > room(*batch))?;
        return Some((name, format!("that of sequence {batch} is {length}; it has room for {}", room(batch))));
    }
    let (batch, length) = seqlens.iter().enumerate().find(|(_, length)| **length > most)?;
    Some((name, format!("that of sequence {batch} is {length}; the tensors have {of_tensor} = {most}")))
}
