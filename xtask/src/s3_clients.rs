//! `cargo xtask s3-clients`: real clients against a server of our own, by the script beside.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Builds the release binary and runs the script on it. Clients that are missing are installed below `scratch`, which
/// needs a network.
///
/// # Errors
/// What a client or the comparison of what came back failed with.
pub fn run(scratch: &Path) -> anyhow::Result<()> {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--bin", "cfs"])
        .status()
        .context("cargo build")?;
    ensure!(built.success(), "cfs was not built");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let status = Command::new("bash")
        .arg("xtask/s3-clients.sh")
        .arg(Path::new(&target).join("release/cfs"))
        .arg(scratch)
        .status()
        .context("xtask/s3-clients.sh")?;
    ensure!(status.success(), "the clients do not agree");
    Ok(())
}
