//! The file that `flash tune` writes and `--tuning` reads.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wgpu_flash_attention::{Element, TunedTiles, Tuning, Workload};

use crate::arguments;
use crate::failure::{Failure, Result};
use crate::target::Target;

/// Measurements on one adapter.
#[derive(Serialize, Deserialize)]
pub struct TuningFile {
    pub adapter: String,
    pub driver: String,
    /// Workgroups below which keys are split.
    pub workgroups: Option<u32>,
    pub tiles: Vec<Entry>,
}

/// The fastest tiles for one kind of problem. Those without matrices stand behind those with, for runs without.
#[derive(Clone, Serialize, Deserialize)]
pub struct Entry {
    /// `decode`, `small` or `large`.
    pub workload: String,
    pub element: String,
    pub head_dim: u32,
    /// As `flash bench --tiles` takes them.
    pub tiles: String,
    pub ms: f64,
    /// With the table's tiles, in the same run.
    pub ms_of_table: f64,
}

impl TuningFile {
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |reason: &dyn std::fmt::Display| {
            Failure::new(format_args!("cannot read the tuning file {}: {reason}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
        let file: Self = serde_json::from_str(&text).map_err(|error| fail(&error))?;
        let _ = file.tuning().map_err(|reason| fail(&reason))?;
        Ok(file)
    }

    pub fn write(&self, target: Target) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|error| Failure::new(format_args!("no JSON: {error}")))?;
        target.write((text + "\n").as_bytes())
    }

    /// As the library takes it.
    pub fn tuning(&self) -> std::result::Result<Tuning, String> {
        let tiles = self.tiles.iter().map(Entry::tuned).collect::<std::result::Result<Vec<_>, String>>()?;
        Ok(self.workgroups.into_iter().fold(Tuning::new(tiles), Tuning::with_workgroups))
    }
}

impl Entry {
    fn tuned(&self) -> std::result::Result<TunedTiles, String> {
        let workload = Workload::ALL.iter().copied().find(|workload| workload.name() == self.workload);
        let element = Element::ALL.iter().copied().find(|element| element.name() == self.element);
        Ok(TunedTiles::new(
            workload.ok_or_else(|| format!("'{}' is no workload", self.workload))?,
            element.ok_or_else(|| format!("'{}' is no element", self.element))?,
            self.head_dim,
            arguments::parse_one_tiles(&self.tiles)?,
        ))
    }
}
