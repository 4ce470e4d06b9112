//! Which rows and keys a rank holds.

/// How a sequence is cut over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// One piece a rank, in order. For problems without a causal mask, and for windows.
    Ring,
    /// Of two pieces a rank, rank r of P has the r-th and the r-th from the end. So ranks have equal work under a causal mask.
    Zigzag,
}

impl Scheme {
    /// Its name on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Ring => "ring",
            Scheme::Zigzag => "zigzag",
        }
    }
}

/// Neighbouring rows, or keys, of the whole problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: u32,
    /// How many there are; perhaps none.
    pub len: u32,
}

/// Rows and keys are cut at multiples of this: one draw of dropout serves four keys.
pub(crate) const GRAIN: u32 = 4;

/// What `rank` of `ranks` holds of `seqlen` rows or keys, in pieces of at most `most` (rounded down to a multiple of 4). All
/// ranks have equally many pieces, and the same on every rank.
pub fn spans(scheme: Scheme, seqlen: u32, ranks: usize, rank: usize, most: u32) -> Vec<Span> {
    let owned = match scheme {
        Scheme::Ring => vec![(ranks, rank)],
        Scheme::Zigzag => vec![(2 * ranks, rank), (2 * ranks, 2 * ranks - 1 - rank)],
    };
    let pieces = owned[0].0;
    let grains = u64::from(seqlen.div_ceil(GRAIN));
    // The longest piece decides into how many each is cut.
    let longest = grains.div_ceil(pieces as u64) * u64::from(GRAIN);
    let cuts = longest.div_ceil(u64::from((most / GRAIN).max(1) * GRAIN)).max(1);
    let at = |piece: u64, of: u64| ((grains * piece / of) as u32 * GRAIN).min(seqlen);
    owned
        .into_iter()
        .flat_map(|(of, piece)| (0..cuts).map(move |cut| (of as u64 * cuts, piece as u64 * cuts + cut)))
        .map(|(of, piece)| {
            let (first, end) = (at(piece, of), at(piece + 1, of));
            Span { first, len: end - first }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_rank() {
        for scheme in [Scheme::Ring, Scheme::Zigzag] {
            for (seqlen, ranks, most) in
                [(0, 3, 9), (1, 4, 100), (97, 1, 1000), (97, 3, 16), (1000, 4, 1000), (64, 8, 4)]
            {
                let of_ranks: Vec<_> = (0..ranks).map(|rank| spans(scheme, seqlen, ranks, rank, most)).collect();
                let mut owners = vec![0; seqlen as usize];
                for span in of_ranks.iter().flatten() {
                    assert!(span.len <= most.max(GRAIN) && (span.first % GRAIN == 0 || span.len == 0), "{span:?}");
                    owners[span.first as usize..][..span.len as usize].iter_mut().for_each(|owner| *owner += 1);
                }
                assert!(owners.iter().all(|count| *count == 1), "{scheme:?} {seqlen} {ranks} {most}: {of_ranks:?}");
                assert!(of_ranks.iter().all(|spans| spans.len() == of_ranks[0].len()));
            }
        }
    }

    #[test]
    fn zigzag_pairs_the_first_with_the_last() {
        let of = |rank| spans(Scheme::Zigzag, 64, 2, rank, 64);
        let span = |first| Span { first, len: 16 };
        assert_eq!(of(0), [span(0), span(48)]);
        assert_eq!(of(1), [span(16), span(32)]);
    }
}
