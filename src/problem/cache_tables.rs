//! Lengths, sums, pages and slots in host memory: whether they fit.

use super::append::AppendProblem;
use super::cache::{KvCache, Pages};
use super::shape::AttentionShape;
use crate::operand::Operand;
use std::ops::Range;

/// What is wrong with a table: its operand, and which entry, with what is allowed.
pub(crate) type TableFault = (Operand, String);

/// Those of a call. Empty where there are none; otherwise as long as the problem says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CacheTables<'a> {
    pub cache_seqlens: &'a [u32],
    pub page_table: &'a [u32],
    pub slot_mapping: &'a [u32],
    pub cu_seqlens_new: &'a [u32],
    /// The cosines of rotary embeddings are so many positions, if they are of positions.
    pub rotary_positions: Option<u32>,
}

impl AppendProblem {
    /// What of these does not fit, if anything does not: places that do not exist, or that are given twice.
    pub(crate) fn fault_of_tables(&self, tables: &CacheTables) -> Option<TableFault> {
        let shape = &self.shape;
        if let Some(total) = self.packed_tokens()
            && let Some(reason) = fault_of_sums(tables.cu_seqlens_new, total, ("shape.seqlen_q", shape.seqlen_q))
        {
            return Some((Operand::CuSeqlensNew, reason));
        }
        let mut places = Vec::new();
        for batch in 0..shape.batch {
            let tokens = self.tokens_of(tables, batch);
            let count = tokens.end - tokens.start;
            if self.has_cache_seqlens()
                && let Some(reason) = self.fault_of_length(tables, batch, count)
            {
                return Some((Operand::CacheSeqlens, reason));
            }
            if self.has_slot_mapping() {
                let slots = &tables.slot_mapping[tokens.start as usize..tokens.end as usize];
                places.extend(slots.iter().copied().filter(|slot| *slot != u32::MAX).map(u64::from));
            } else {
                let first = tables.cache_seqlens[batch as usize];
                match self.cache.places(shape, tables.page_table, batch, first..first + count as u32) {
                    Ok(found) => places.extend(found),
                    Err(reason) => return Some((Operand::PageTable, reason)),
                }
            }
        }
        self.fault_of_places(places)
    }

    /// The numbers of a sequence's new tokens.
    fn tokens_of(&self, tables: &CacheTables, batch: u32) -> Range<u64> {
        let seqlen = u64::from(self.shape.seqlen_q);
        match self.packed_tokens() {
            Some(_) => {
                let sums = &tables.cu_seqlens_new[batch as usize..];
                sums[0].into()..sums[1].into()
            }
            None => u64::from(batch) * seqlen..(u64::from(batch) + 1) * seqlen,
        }
    }

    fn fault_of_length(&self, tables: &CacheTables, batch: u32, tokens: u64) -> Option<String> {
        let (length, capacity) = (u64::from(tables.cache_seqlens[batch as usize]), u64::from(self.shape.seqlen_kv));
        if length + tokens > capacity {
            return Some(format!(
                "sequence {batch} has {length} positions and {tokens} new; the cache has room for {capacity}"
            ));
        }
        let positions = u64::from(tables.rotary_positions?);
        (tokens > 0 && length + tokens > positions).then(|| {
            format!("sequence {batch} reaches position {}; the rotary tables have {positions}", length + tokens - 1)
        })
    }

    /// Whether a place does not exist, or is given twice.
    fn fault_of_places(&self, mut places: Vec<u64>) -> Option<TableFault> {
        let operand = if self.has_slot_mapping() { Operand::SlotMapping } else { Operand::PageTable };
        let [pages, page_size] = self.cache.counts(&self.shape).map(u64::from);
        places.sort_unstable();
        if let Some(last) = places.last().filter(|last| **last >= pages * page_size) {
            return Some((operand, format!("slot {last}; the cache has {} slots", pages * page_size)));
        }
        let twice = places.windows(2).find(|pair| pair[0] == pair[1])?[0];
        let (page, row) = (twice / page_size.max(1), twice % page_size.max(1));
        Some((operand, format!("two tokens go to one place, row {row} of page {page}")))
    }
}

impl KvCache {
    /// The places of a sequence's positions, pages and their rows counted through; or the entry of the page table that does not
    /// exist.
    pub(crate) fn places(
        &self,
        shape: &AttentionShape,
        page_table: &[u32],
        batch: u32,
        positions: Range<u32>,
    ) -> Result<Vec<u64>, String> {
        let Some(Pages { page_size, max_pages, .. }) = self.pages else {
            let first = u64::from(batch) * u64::from(shape.seqlen_kv);
            return Ok(positions.map(|position| first + u64::from(position)).collect());
        };
        if let Some(reason) = self.fault_of_pages(page_table, batch, &positions) {
            return Err(reason);
        }
        let pages = &page_table[batch as usize * max_pages as usize..];
        let place = |position: u32| {
            let page = pages[(position / page_size) as usize];
            u64::from(page) * u64::from(page_size) + u64::from(position % page_size)
        };
        Ok(positions.map(place).collect())
    }

    /// The entry of the page table that does not exist, if these positions of a sequence need one.
    pub(crate) fn fault_of_pages(&self, page_table: &[u32], batch: u32, positions: &Range<u32>) -> Option<String> {
        let Pages { num_pages, page_size, max_pages } = self.pages.filter(|_| !positions.is_empty())?;
        let pages = &page_table[batch as usize * max_pages as usize..];
        let mut entries = positions.start / page_size..positions.end.div_ceil(page_size);
        let entry = entries.find(|entry| pages[*entry as usize] >= num_pages)?;
        let page = pages[entry as usize];
        Some(format!("entry {entry} of sequence {batch} is page {page}; there are {num_pages} pages"))
    }
}

/// What makes these no sums of lengths of packed sequences, if anything does. `most` is the longest that one may be.
pub(crate) fn fault_of_sums(sums: &[u32], total: u32, most: (&str, u32)) -> Option<String> {
    if let Some(first) = sums.first().filter(|first| **first != 0) {
        return Some(format!("the first is {first}; it must be 0"));
    }
    for (index, pair) in sums.windows(2).enumerate() {
        if pair[1] < pair[0] {
            return Some(format!(
                "entry {} is {}, less than {} before it; sums never fall",
                index + 1,
                pair[1],
                pair[0]
            ));
        }
        if pair[1] - pair[0] > most.1 {
            return Some(format!("sequence {index} has {} rows; {} is {}", pair[1] - pair[0], most.0, most.1));
        }
    }
    sums.last().filter(|last| **last != total).map(|last| format!("the last is {last}; it must be the total, {total}"))
}
