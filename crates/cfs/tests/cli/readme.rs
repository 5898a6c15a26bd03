//! The commands of the README's tour, run as they stand there.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Scratch, can_mount, eventually, run};

/// The first block of shell commands after the heading.
fn commands_below<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, below) = text.split_once(heading).expect("the heading is there");
    let (_, block) = below.split_once("```sh\n").expect("a block is there");
    block.split_once("```").expect("the block ends").0
}

#[test]
fn the_tour_works_as_written() {
    if can_mount("the_tour_works_as_written") {
        assert!(tour("## Three minutes").contains("deduplication"));
    }
}

#[test]
fn going_back_works_as_written() {
    if can_mount("going_back_works_as_written") {
        assert!(tour("## Going back").contains("before"));
    }
}

#[test]
fn volumes_and_a_second_pool_work_as_written() {
    if can_mount("volumes_and_a_second_pool_work_as_written") {
        assert!(tour("## Volumes, and a second pool").contains("tuesday"));
    }
}

/// Runs the commands below the heading, and waits for the end of what they have started. Returns what they print.
fn tour(heading: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = fs::read_to_string(root.join("README.md")).expect("a README");
    let tour = commands_below(&readme, heading);
    assert!(tour.contains("cfs mount"), "{tour}");
    let scratch = Scratch::new();
    let binary = Path::new(env!("CARGO_BIN_EXE_cfs"));
    let mut path = binary.parent().expect("a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell
        .args(["-euo", "pipefail", "-c", tour])
        .current_dir(scratch.dir("tour"))
        .env("PATH", path)
        .env_remove("CFS_PASSPHRASE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = run(shell).ok();
    let socket = scratch.path("tour/pool/socket");
    eventually("the end of what the tour started", || !socket.exists());
    done.stdout
}
