//! `cargo xtask layers`: compares the dependencies between the crates of the workspace with the picture of them.
//!
//! The picture is [`LAYERS`], from top to bottom as in ARCHITECTURE.md. It keeps its own rule: a crate names only
//! crates below itself, so every arrow points down. Crates beside the picture may use it, and are used by nothing.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// A crate of the product, and what it may depend on.
struct Layer {
    name: &'static str,
    below: &'static [&'static str],
    /// At the edge: may use an asynchronous run time.
    edge: bool,
}

const fn core(name: &'static str, below: &'static [&'static str]) -> Layer {
    Layer {
        name,
        below,
        edge: false,
    }
}

const fn edge(name: &'static str, below: &'static [&'static str]) -> Layer {
    Layer {
        name,
        below,
        edge: true,
    }
}

/// The product from top to bottom.
const LAYERS: &[Layer] = &[
    edge(
        "cfs",
        &[
            "cfs-s3",
            "cfs-fuse",
            "cfs-fs",
            "cfs-store",
            "cfs-seal",
            "cfs-device",
            "cfs-format",
        ],
    ),
    edge("cfs-s3", &["cfs-fs", "cfs-store", "cfs-seal", "cfs-format"]),
    edge("cfs-fuse", &["cfs-fs", "cfs-format"]),
    core(
        "cfs-fs",
        &["cfs-store", "cfs-seal", "cfs-device", "cfs-format"],
    ),
    core(
        "cfs-store",
        &["cfs-kv", "cfs-seal", "cfs-device", "cfs-format"],
    ),
    core("cfs-kv", &["cfs-format"]),
    core("cfs-seal", &["cfs-format"]),
    core("cfs-device", &["cfs-format"]),
    core("cfs-format", &[]),
];

/// For developers; nothing of the product depends on them.
const BESIDE: &[&str] = &["cfs-sim", "xtask"];

/// Crates that bring an asynchronous run time.
const ASYNCHRONOUS: &[&str] = &["tokio", "async-std", "smol"];

/// A dependency as `Cargo.toml` states it.
#[derive(Clone, Debug)]
struct Edge {
    from: String,
    to: String,
    /// For tests and benches alone.
    dev: bool,
}

/// Checks the workspace in the current directory.
///
/// # Errors
/// Every edge that is not in the picture, and every crate.
pub fn run() -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cargo metadata")?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        message.trim()
    );
    let (crates, edges) = parse(&serde_json::from_slice(&output.stdout)?)?;
    let faults = faults(&crates, &edges);
    if !faults.is_empty() {
        bail!("the layers do not hold:\n  {}", faults.join("\n  "));
    }
    for (package, feature) in [
        ("cfs-store", "planted-bugs"),
        ("cfs-store", "models"),
        ("cfs-store", "raw-rows"),
        ("cfs-s3", "decoders"),
    ] {
        stays_out(package, feature)?;
    }
    println!(
        "{} crates, {} edges, all point down",
        crates.len(),
        edges.len()
    );
    Ok(())
}

/// The product is never built with what is for checkers alone: bugs that can be planted, locks of the models, what takes
/// any bytes for rows.
fn stays_out(package: &str, feature: &str) -> anyhow::Result<()> {
    let start = format!("{package} ");
    let has = |line: &str| line.starts_with(&start) && line.contains(feature);
    // Were it called otherwise, or did cargo not tell features this way, this would look for nothing.
    let with = features(&["--package", package, "--features", feature])?;
    ensure!(
        with.lines().any(has),
        "cargo tree does not show the feature {feature} where it is"
    );
    let product = features(&["--package", "cfs"])?;
    match product.lines().find(|line| has(line)) {
        None => Ok(()),
        Some(line) => bail!("the product is built with the feature {feature}: {line}"),
    }
}

/// The packages that a build takes, a line each, with their features.
fn features(build: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--prefix", "none", "--format", "{p} {f}"])
        .args(build)
        .output()
        .context("cargo tree")?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo tree: {}", message.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse(metadata: &Value) -> anyhow::Result<(BTreeSet<String>, Vec<Edge>)> {
    let packages = metadata["packages"].as_array().context("packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a name");
    let mut crates = BTreeSet::new();
    for package in packages {
        crates.insert(text(&package["name"])?);
    }
    let mut edges = Vec::new();
    for package in packages {
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let to = text(&dependency["name"])?;
            if crates.contains(&to) || ASYNCHRONOUS.contains(&&*to) {
                edges.push(Edge {
                    from: text(&package["name"])?,
                    to,
                    dev: dependency["kind"] == "dev",
                });
            }
        }
    }
    Ok((crates, edges))
}

fn position(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.name == name)
}

fn faults(crates: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let mut faults = Vec::new();
    let known = |name: &str| position(name).is_some() || BESIDE.contains(&name);
    for name in crates.iter().filter(|name| !known(name)) {
        faults.push(format!(
            "{name} is not in the picture: give it a layer in xtask/src/layers.rs"
        ));
    }
    for name in LAYERS
        .iter()
        .map(|layer| layer.name)
        .chain(BESIDE.iter().copied())
    {
        if !crates.contains(name) {
            faults.push(format!(
                "{name} is in the picture, but there is no such crate"
            ));
        }
    }
    faults.extend(edges.iter().filter_map(fault));
    faults
}

/// What is wrong with an edge, if anything.
fn fault(edge: &Edge) -> Option<String> {
    let Edge { from, to, dev } = edge;
    let from_at = position(from)?;
    let layer = &LAYERS[from_at];
    if ASYNCHRONOUS.contains(&&**to) {
        return (!layer.edge).then(|| format!("{from} is no edge crate and may not use {to}"));
    }
    match position(to) {
        None => Some(format!(
            "{from} -> {to}: nothing of the product uses what stands beside it"
        )),
        Some(to_at) if to_at <= from_at => Some(format!("{from} -> {to} points up")),
        // A test may build what is below its crate from its parts.
        Some(_) if *dev || layer.below.contains(&&**to) => None,
        Some(_) => Some(format!("{from} -> {to} is not in the picture")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_points_down() {
        for (at, layer) in LAYERS.iter().enumerate() {
            for below in layer.below {
                let below_at = position(below);
                assert!(below_at > Some(at), "{} -> {below}", layer.name);
            }
        }
    }

    #[test]
    fn wrong_edges_are_found() {
        let check = |from: &str, to: &str, dev: bool, expected: Option<&str>| {
            let edge = Edge {
                from: from.to_owned(),
                to: to.to_owned(),
                dev,
            };
            let found = fault(&edge);
            let agrees = match (&found, expected) {
                (Some(found), Some(expected)) => found.contains(expected),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(agrees, "{edge:?}: {found:?}");
        };
        check("cfs-fuse", "cfs-fs", false, None);
        check("cfs-fuse", "cfs-store", true, None);
        check("cfs-fuse", "cfs-store", false, Some("not in the picture"));
        check("cfs-kv", "cfs-store", false, Some("points up"));
        check("cfs-kv", "cfs-store", true, Some("points up"));
        check("cfs", "xtask", false, Some("beside"));
        check("cfs-store", "tokio", false, Some("no edge crate"));
        check("cfs-fuse", "tokio", false, None);
        check("cfs-sim", "cfs-fs", false, None);
    }

    #[test]
    fn unknown_and_missing_crates_are_found() {
        let mut crates: BTreeSet<String> = LAYERS
            .iter()
            .map(|layer| layer.name)
            .chain(BESIDE.iter().copied())
            .map(str::to_owned)
            .collect();
        assert!(faults(&crates, &[]).is_empty());
        crates.insert("cfs-new".to_owned());
        crates.remove("cfs-kv");
        let found = faults(&crates, &[]);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
