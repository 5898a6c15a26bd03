//! What most benches let choose alike.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;

use crate::place::Place;

/// What runs, where, and how often.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// The release binary of ClaudeFS; by default the one beside this program.
    #[arg(long)]
    cfs: Option<PathBuf>,
    /// Directory for data and mount points, which are removed again; by default the system's temporary directory.
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) rounds: usize,
}

impl Run {
    /// The binary that was given.
    pub(crate) fn cfs(&self) -> Option<&Path> {
        self.cfs.as_deref()
    }

    /// The directory to make things in.
    ///
    /// # Errors
    /// The current directory is not known, and the path is below it.
    pub(crate) fn scratch(&self) -> anyhow::Result<PathBuf> {
        let scratch = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        // Programs run in other directories.
        Ok(std::path::absolute(scratch)?)
    }

    /// A place of this name in the scratch directory.
    ///
    /// # Errors
    /// Those of [`Place::new`].
    pub(crate) fn place(&self, name: &str) -> anyhow::Result<Place> {
        Place::new(&self.scratch()?, name, self.cfs())
    }

    /// Runs `bench` in a new directory, and removes it afterwards.
    ///
    /// # Errors
    /// Those of `bench`, and when the directory cannot be made or removed.
    pub(crate) fn in_scratch(
        &self,
        bench: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let name = format!("cfs-bench-{}", std::process::id());
        let scratch = self.scratch()?.join(name);
        std::fs::create_dir_all(&scratch)?;
        let result = bench(&scratch);
        std::fs::remove_dir_all(&scratch).context("cleaning up")?;
        result
    }
}
