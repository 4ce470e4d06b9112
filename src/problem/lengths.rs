use super::shape::AttentionShape;

/// The lengths of each sequence, where they are shorter than the tensors: key padding. See
/// [`AttentionProblem::with_lengths`](super::AttentionProblem::with_lengths).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub seqlens_q: Vec<u32>,
    pub seqlens_kv: Vec<u32>,
}

impl Lengths {
    /// What makes them no lengths for a problem of this shape, if anything does.
    pub fn fault(&self, shape: &AttentionShape) -> Option<(&'static str, String)> {
        let given = [
            ("seqlens_q", &self.seqlens_q, "seqlen_q", shape.seqlen_q),
            ("seqlens_kv", &self.seqlens_kv, "seqlen_kv", shape.seqlen_kv),
        ];
        given.into_iter().find_map(|(name, lengths, of_tensor, most)| {
            if lengths.len() as u64 != u64::from(shape.batch) {
                return Some((name, format!("{} lengths are given for {} sequences", lengths.len(), shape.batch)));
            }
            let (batch, length) = lengths.iter().enumerate().find(|(_, length)| **length > most)?;
            Some((name, format!("that of sequence {batch} is {length}; the tensors have {of_tensor} = {most}")))
        })
    }

    /// The words of `shaders/slots/lengths/own.wgsl`.
    pub fn table(&self, is_bottom_right: bool) -> Vec<u32> {
        let head = [u32::from(is_bottom_right), self.seqlens_q.len() as u32];
        head.into_iter().chain(self.seqlens_q.iter().copied()).chain(self.seqlens_kv.iter().copied()).collect()
    }
}
