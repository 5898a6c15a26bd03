//! `cargo xtask bench s3`: PUT and GET over S3, beside `s3s-fs` on the same disk in the same run.
//!
//! Both servers run at once and take turns at each cell, round after round, in changing order; a figure is the median of
//! the rounds. `s3s-fs` keeps objects as plain files and does not wait for the disk; it computes MD5 too. What
//! matters are the ratios within one run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench_mount::median;
use crate::bench_run::Run;
use crate::plot::{self, Axis, Bar, Group, Panel, Plot};
use crate::s3_client::{Account, Connection, PIECE_BYTES, Sent};
use crate::workload::Random;

/// The release of `s3s-fs` that is compared with.
const PEER_VERSION: &str = "0.14.1";

/// What to compare, and how much of it.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// Where `s3s-fs` is installed, if it is not there yet (which needs a network); `none` for no comparison.
    #[arg(long, default_value = "/tmp/cfs-s3s-fs")]
    peer: PathBuf,
    /// KiB of an object.
    #[arg(long, value_delimiter = ',', default_value = "4,1024,65536")]
    sizes_kib: Vec<u64>,
    /// Connections at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    connections: Vec<usize>,
    /// Seconds of each cell.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// MiB that a cell may store; fewer connections where that is too little for one object each.
    #[arg(long, default_value_t = 1024)]
    cell_mib: u64,
    /// An option for `cfs server`; may be given often.
    #[arg(long, allow_hyphen_values = true)]
    server_option: Vec<String>,
    /// Draw the medians of the rates here, as an SVG, relative to s3s-fs.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs the bench and prints the table.
///
/// # Errors
/// When a server does not start or refuses a request. Both are ended and their data removed in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let has_peer = options.peer.as_os_str() != "none";
    if let Some(path) = &options.svg {
        ensure!(has_peer, "--svg compares with s3s-fs");
        plot::prepare(path)?;
    }
    let mut place = options.run.place("bench-s3")?;
    let address = place.with_s3()?;
    let more: Vec<&str> = options.server_option.iter().map(String::as_str).collect();
    place.with(&more);
    place.start(false)?;
    let mut accounts = vec![place.account(address, "bench")?];
    let mut pids = vec![place.pid()];
    let peer = match has_peer {
        true => Some(Peer::start(&options.peer, &place.dir().join("s3s-fs"))?),
        false => None,
    };
    accounts.extend(peer.iter().map(|peer| peer.account.clone()));
    pids.extend(peer.iter().map(|peer| peer.child.id()));
    for account in &accounts {
        Connection::new(account).ask("PUT", "/bench", "")?.ok()?;
    }
    let mut cells = Vec::new();
    for &kib in &options.sizes_kib {
        for &connections in &options.connections {
            let most = (options.cell_mib << 10) / kib;
            let connections = connections.min(usize::try_from(most)?).max(1);
            let cell = Cell {
                bytes: kib << 10,
                connections,
                objects_max: (most as usize / connections).max(1),
                seconds: options.seconds,
            };
            if !cells.contains(&cell) {
                cells.push(cell);
            }
        }
    }
    let mut figures = vec![vec![Vec::new(); accounts.len()]; cells.len()];
    for round in 0..options.run.rounds {
        for (row, cell) in cells.iter().enumerate() {
            for turn in 0..accounts.len() {
                let column = (turn + round) % accounts.len();
                let seed = (round * cells.len() + row) as u64 + 1;
                figures[row][column].push(cell.measure(&accounts[column], pids[column], seed)?);
                eprint!(".");
            }
        }
        eprintln!(" round {} of {}", round + 1, options.run.rounds);
    }
    let medians: Vec<Vec<Figure>> = figures
        .iter()
        .map(|row| row.iter().map(|figures| Figure::median(figures)).collect())
        .collect();
    print_table(&cells, &medians);
    if let Some(path) = &options.svg {
        relative(&cells, &medians, options.run.rounds).write(path)?;
    }
    drop(peer);
    place.stop()?;
    place.remove()
}

/// A size and a number of connections.
#[derive(Clone, PartialEq)]
struct Cell {
    bytes: u64,
    connections: usize,
    /// Of each connection.
    objects_max: usize,
    seconds: f64,
}

/// Of one phase.
#[derive(Clone, Copy)]
struct Rate {
    objects_per_second: f64,
    /// Of the server, for one object.
    cpu_seconds: f64,
}

/// Of one cell.
#[derive(Clone, Copy)]
struct Figure {
    put: Rate,
    put_again: Rate,
    get: Rate,
}

/// What [`Figure`] has, by the names of the columns.
const KINDS: [(&str, fn(&Figure) -> Rate); 3] = [
    ("PUT, unique", |figure| figure.put),
    ("PUT, duplicate", |figure| figure.put_again),
    ("GET", |figure| figure.get),
];

impl Figure {
    /// Each of its numbers by itself.
    fn median(figures: &[Self]) -> Self {
        let rate = |kind: fn(&Self) -> Rate| {
            let of = |number: fn(Rate) -> f64| {
                let numbers: Vec<f64> = figures.iter().map(|it| number(kind(it))).collect();
                median(&numbers)
            };
            Rate {
                objects_per_second: of(|rate| rate.objects_per_second),
                cpu_seconds: of(|rate| rate.cpu_seconds),
            }
        };
        let [put, put_again, get] = KINDS.map(|(_, kind)| rate(kind));
        Self {
            put,
            put_again,
            get,
        }
    }
}

/// Seconds of CPU time that a process has taken (proc(5), `stat`).
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Content that no other has, and that does not shrink: a piece that is stamped every 2 KiB.
struct Material {
    piece: Vec<u8>,
}

impl Material {
    fn new() -> Self {
        let mut rng = Random::new(77);
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES {
            piece.extend_from_slice(&rng.next().to_le_bytes());
        }
        Self { piece }
    }

    fn fill(&self, number: u64, at: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.piece[..out.len()]);
        let mut rng = Random::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at);
        for part in out.chunks_mut(2048) {
            let stamp = rng.next().to_le_bytes();
            let bytes = part.len().min(8);
            part[..bytes].copy_from_slice(&stamp[..bytes]);
        }
    }
}

impl Cell {
    fn measure(&self, account: &Account, pid: u32, seed: u64) -> anyhow::Result<Figure> {
        let material = Material::new();
        let number =
            |thread: usize, object: usize| (seed << 40) + ((thread as u64) << 24) + object as u64;
        let put = |connection: &mut Connection, key: &str, number: u64| -> anyhow::Result<()> {
            let mut sent = Sent {
                bytes: self.bytes,
                fill: &mut |at, piece| material.fill(number, at, piece),
            };
            connection.put(key, "", &mut sent)?.ok().map(drop)
        };
        let key = |thread: usize, object: usize| format!("/bench/{thread}/{object}");
        let (put_rate, counts) = self.timed(
            account,
            pid,
            self.objects_max,
            |connection, thread, object| {
                put(connection, &key(thread, object), number(thread, object))
            },
        )?;
        let (get_rate, _) =
            self.timed(account, pid, usize::MAX, |connection, thread, object| {
                let key = key(thread, object % counts[thread]);
                let mut received = 0;
                let answer = connection.get(&key, "", &mut |_, piece| received += piece.len())?;
                answer.ok()?;
                ensure!(received as u64 == self.bytes, "{key} has {received} bytes");
                Ok(())
            })?;
        // The same content under other names.
        let again = |thread: usize, object: usize| format!("/bench/again{thread}/{object}");
        let (again_rate, again_counts) = self.timed(
            account,
            pid,
            self.objects_max,
            |connection, thread, object| {
                let same = number(thread, object % counts[thread]);
                put(connection, &again(thread, object), same)
            },
        )?;
        let remove = |thread: usize| -> anyhow::Result<()> {
            let mut connection = Connection::new(account);
            for object in 0..counts[thread] {
                connection.ask("DELETE", &key(thread, object), "")?.ok()?;
            }
            for object in 0..again_counts[thread] {
                connection.ask("DELETE", &again(thread, object), "")?.ok()?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let remove = &remove;
            let threads: Vec<_> = (0..self.connections)
                .map(|thread| scope.spawn(move || remove(thread)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        Ok(Figure {
            put: put_rate,
            put_again: again_rate,
            get: get_rate,
        })
    }

    /// Has each connection do something over and over. How often in a second all together, and how often each.
    fn timed(
        &self,
        account: &Account,
        pid: u32,
        most: usize,
        work: impl Fn(&mut Connection, usize, usize) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<(Rate, Vec<usize>)> {
        let barrier = Barrier::new(self.connections);
        let (work, barrier) = (&work, &barrier);
        let life = Duration::from_secs_f64(self.seconds);
        let cpu = cpu_seconds(pid)?;
        let done = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.connections)
                .map(|thread| {
                    scope.spawn(move || -> anyhow::Result<(usize, Instant, Instant)> {
                        let mut connection = Connection::new(account);
                        // Connecting is no part of it.
                        connection.ask("HEAD", "/bench", "")?;
                        barrier.wait();
                        let start = Instant::now();
                        let mut count = 0;
                        while count == 0 || (start.elapsed() < life && count < most) {
                            work(&mut connection, thread, count)?;
                            count += 1;
                        }
                        Ok((count, start, Instant::now()))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        let start = done.iter().map(|done| done.1).min().expect("one at least");
        let end = done.iter().map(|done| done.2).max().expect("one at least");
        let counts: Vec<usize> = done.iter().map(|done| done.0).collect();
        let all: usize = counts.iter().sum();
        let rate = Rate {
            objects_per_second: all as f64 / (end - start).as_secs_f64(),
            cpu_seconds: (cpu_seconds(pid)? - cpu) / all as f64,
        };
        Ok((rate, counts))
    }

    fn is_small(&self) -> bool {
        self.bytes < 1 << 20
    }

    fn size(&self) -> String {
        match self.is_small() {
            true => format!("{} KiB", self.bytes >> 10),
            false => format!("{} MiB", self.bytes >> 20),
        }
    }

    fn show(&self, rate: f64) -> String {
        match self.is_small() {
            true => format!("{rate:.0} /s"),
            false => format!("{:.0} MB/s", rate * self.bytes as f64 / 1e6),
        }
    }
}

/// How many times the rates of s3s-fs ours are.
fn relative(cells: &[Cell], medians: &[Vec<Figure>], rounds: usize) -> Plot {
    let groups = cells.iter().zip(medians).map(|(cell, row)| {
        let bars = KINDS.map(|(_, kind)| {
            let [ours, theirs] = [0, 1].map(|column| kind(&row[column]).objects_per_second);
            Bar::ratio(ours / theirs, &cell.show(ours))
        });
        let connections = match cell.connections {
            1 => "1 connection".to_owned(),
            more => format!("{more} connections"),
        };
        Group {
            title: format!("{}, {connections}", cell.size()),
            bars: bars.into(),
        }
    });
    Plot {
        title: "S3".to_owned(),
        subtitle: format!(
            "Rates of cfs, how many times those of s3s-fs (1) they are, {}; more is better",
            plot::medians_of(rounds)
        ),
        axis: Axis::Ratios,
        series: KINDS.map(|(title, _)| title.to_owned()).into(),
        panels: vec![Panel {
            title: String::new(),
            groups: groups.collect(),
        }],
    }
}

fn print_table(cells: &[Cell], medians: &[Vec<Figure>]) {
    let head = "| object | connections | PUT, unique | s3s-fs | PUT, duplicate | s3s-fs | GET | s3s-fs |\n\
                | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";
    println!("Rates, and how many times that of s3s-fs they are:\n\n{head}");
    for (cell, row) in cells.iter().zip(medians) {
        let line = KINDS.map(|(_, kind)| {
            let ours = kind(&row[0]).objects_per_second;
            let theirs = row.get(1).map(|theirs| kind(theirs).objects_per_second);
            let beside = theirs.map_or("-".to_owned(), |theirs| {
                format!("{:.2} of {}", ours / theirs, cell.show(theirs))
            });
            format!("{} | {beside}", cell.show(ours))
        });
        let (size, connections) = (cell.size(), cell.connections);
        println!("| {size} | {connections} | {} |", line.join(" | "));
    }
    println!("\nCPU time of the server for an object, or for a GB of larger ones:\n\n{head}");
    for (cell, row) in cells.iter().zip(medians) {
        let time = |figure: &Figure, kind: fn(&Figure) -> Rate| {
            let seconds = kind(figure).cpu_seconds;
            match cell.is_small() {
                true => format!("{:.0} us", seconds * 1e6),
                false => format!("{:.2} s", seconds * 1e9 / cell.bytes as f64),
            }
        };
        let line = KINDS.map(|(_, kind)| {
            let beside = row.get(1).map(|theirs| time(theirs, kind));
            format!(
                "{} | {}",
                time(&row[0], kind),
                beside.unwrap_or("-".to_owned())
            )
        });
        let (size, connections) = (cell.size(), cell.connections);
        println!("| {size} | {connections} | {} |", line.join(" | "));
    }
}

/// A running `s3s-fs`; dropping it ends it.
struct Peer {
    child: Child,
    account: Account,
}

impl Peer {
    /// Installs it below `home` if it is not there, and starts it on a new directory.
    fn start(home: &Path, root: &Path) -> anyhow::Result<Self> {
        let binary = home.join("bin/s3s-fs");
        if !binary.is_file() {
            let installed = Command::new(env!("CARGO"))
                .args([
                    "install",
                    "--quiet",
                    "--locked",
                    "s3s-fs",
                    "--version",
                    PEER_VERSION,
                ])
                .args(["--features", "binary", "--root"])
                .arg(home)
                .arg("--target-dir")
                .arg(home.join("build"))
                .status()
                .context("cargo install s3s-fs")?;
            ensure!(installed.success(), "s3s-fs was not installed");
            std::fs::remove_dir_all(home.join("build"))?;
        }
        std::fs::create_dir(root)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let account = Account {
            address,
            access_key_id: "BENCH".to_owned(),
            secret_access_key: "bench-secret".to_owned(),
        };
        let child = Command::new(&binary)
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--access-key", &account.access_key_id])
            .args(["--secret-key", &account.secret_access_key])
            .arg(root)
            .env("RUST_LOG", "error")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let peer = Self { child, account };
        let started = Instant::now();
        while peer.account.connect().is_err() {
            ensure!(
                started.elapsed() < Duration::from_secs(10),
                "s3s-fs does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
