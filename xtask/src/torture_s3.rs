//! `cargo xtask torture-s3`: 64 clients over S3 with a ledger outside of the server, and `kill -9` at random moments.
//!
//! Each client has keys of its own and a list of what every one of them may hold: what was acknowledged last, and what was
//! begun since. It puts objects whole and in parts, into a bucket with versions too, and deletes. After each kill the
//! server is started again: each key holds something that its list allows, whole; each version that was acknowledged
//! is there, and no version holds anything that was not sent; an upload in parts goes on with the parts that were acknowledged.
//! In the end a small pool is filled up: what does not fit is told so, and nothing that was acknowledged is lost by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::place::{Place, output};
use crate::s3_client::{Account, Answer, Connection, Sent};
use crate::torture::{Content, Options};
use crate::workload::Random;

const CLIENTS: u64 = 64;
const KEYS: u64 = 6;
/// Rounds between two checks of the pool.
const ROUNDS_TO_FSCK: u64 = 5;
/// The server is killed after so many milliseconds at most.
const LIFE_MS_MAX: u64 = 2500;
/// Longest object, bytes; most are much shorter.
const BYTES_MAX: u64 = 400_000;
/// Bytes of a part that is not the last: the least that S3 takes.
const PART_BYTES: u64 = 5 << 20;
/// Versions of one key that are kept.
const VERSIONS_MAX: usize = 12;

/// Runs the torture.
///
/// # Errors
/// The first thing that the ledger contradicts, with the seed; or the server does not start or does not check.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    let seed = options.seed.unwrap_or(now.as_nanos() as u64);
    let result = kill_rounds(options, seed, &stop).and_then(|()| full_pool(options));
    if result.is_err() {
        println!(
            "seed {seed} (moments depend on the machine too): cargo xtask torture-s3 --rounds {} --seed {seed} --dir {}",
            options.rounds,
            options.dir.display(),
        );
    }
    result
}

fn kill_rounds(options: &Options, seed: u64, stop: &AtomicBool) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut rng = Random::new(seed);
    let mut place = Place::new(&options.dir, "torture-s3", options.cfs.as_deref())?;
    let address = place.with_s3()?;
    place.start(false)?;
    let account = place.account(address, "torture")?;
    let mut setup = Connection::new(&account);
    for bucket in ["/plain", "/versions"] {
        setup.ask("PUT", bucket, "")?.ok()?;
    }
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    setup
        .send_text("PUT", "/versions", "versioning", enabled)?
        .ok()?;
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::new(number, &account, rng.next()))
        .collect();
    let mut checks = 0;
    for round in 0..=options.rounds {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted");
        if round > 0 {
            place.start(false)?;
        }
        in_parallel(&mut clients, Client::compare).with_context(|| format!("round {round}"))?;
        if round % ROUNDS_TO_FSCK == 0 {
            output(&mut place.cfs(&["admin", "fsck"])).with_context(|| format!("round {round}"))?;
            checks += 1;
        }
        if round == options.rounds {
            break;
        }
        let life = Duration::from_millis(1 + rng.below(LIFE_MS_MAX));
        let dead = AtomicBool::new(false);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let workers: Vec<_> = clients
                .iter_mut()
                .map(|client| scope.spawn(|| client.work(&dead)))
                .collect();
            std::thread::sleep(life);
            dead.store(true, Ordering::SeqCst);
            place.kill()?;
            for worker in workers {
                let worked = worker.join().expect("clients do not panic");
                worked.with_context(|| format!("round {round}"))?;
            }
            Ok(())
        })?;
    }
    place.stop()?;
    output(&mut place.cfs(&["admin", "fsck"])).context("fsck of the pool at rest")?;
    let sum = |count: fn(&Client) -> u64| clients.iter().map(count).sum::<u64>();
    println!(
        "{} rounds clean, seed {seed}: {} requests acknowledged, {} cut off, {} uploads went on after a kill, {} versions \
         compared, {checks} checks clean, {:.0} s",
        options.rounds,
        sum(|client| client.acknowledged),
        sum(|client| client.cut),
        sum(|client| client.resumed),
        sum(|client| client.versions_compared),
        start.elapsed().as_secs_f64()
    );
    ensure!(
        sum(|client| client.acknowledged) > 0 && sum(|client| client.cut) > 0,
        "nothing was acknowledged, or nothing cut off"
    );
    place.remove()
}

/// Has all clients do something, a few at a time.
fn in_parallel(
    clients: &mut [Client],
    work: fn(&mut Client) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let share = clients.len().div_ceil(8);
        let workers: Vec<_> = clients
            .chunks_mut(share)
            .map(|clients| scope.spawn(move || clients.iter_mut().try_for_each(work)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("clients do not panic"))
    })
}

/// What a key may hold: contents one after the other, or nothing.
type State = Option<Vec<Content>>;

/// An upload in parts that a kill has interrupted.
struct Upload {
    key: String,
    id: String,
    parts: Vec<Content>,
    /// Of the parts that were acknowledged.
    etags: Vec<String>,
}

/// One client, and its ledger.
struct Client {
    connection: Connection,
    rng: Random,
    /// What each key may hold; the last is the newest.
    keys: BTreeMap<String, Vec<State>>,
    /// Versions of each key that were acknowledged and not deleted.
    versions: BTreeMap<String, Vec<(String, Content)>>,
    /// What was sent to keys with versions, acknowledged or not.
    sent: Vec<Content>,
    upload: Option<Upload>,
    acknowledged: u64,
    cut: u64,
    resumed: u64,
    versions_compared: u64,
}

impl Client {
    fn new(number: u64, account: &Account, seed: u64) -> Self {
        let keys = (0..KEYS).map(|key| (format!("/plain/{number}/{key}"), vec![None]));
        Self {
            connection: Connection::new(account),
            rng: Random::new(seed),
            keys: keys.collect(),
            versions: [(format!("/versions/{number}"), Vec::new())].into(),
            sent: Vec::new(),
            upload: None,
            acknowledged: 0,
            cut: 0,
            resumed: 0,
            versions_compared: 0,
        }
    }

    fn content(&mut self) -> Content {
        let most = [5000, 40_000, BYTES_MAX][self.rng.below(3) as usize];
        Content {
            id: self.rng.next(),
            len: self.rng.below(most),
        }
    }

    /// What a request came to: none if the server was killed meanwhile.
    fn judge(
        &mut self,
        answer: anyhow::Result<Answer>,
        dead: &AtomicBool,
    ) -> anyhow::Result<Option<Answer>> {
        match answer {
            Ok(answer) => {
                self.acknowledged += 1;
                answer.ok().map(Some)
            }
            Err(_) if dead.load(Ordering::SeqCst) => {
                self.cut += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn put(&mut self, path: &str, query: &str, content: Content) -> anyhow::Result<Answer> {
        let bytes = content.bytes();
        let mut sent = Sent {
            bytes: content.len,
            fill: &mut |at, piece| {
                let at = at as usize;
                piece.copy_from_slice(&bytes[at..at + piece.len()]);
            },
        };
        self.connection.put(path, query, &mut sent)
    }

    /// Works until the server is dead.
    fn work(&mut self, dead: &AtomicBool) -> anyhow::Result<()> {
        while !dead.load(Ordering::SeqCst) {
            let key = self.rng.below(KEYS) as usize;
            let key = self.keys.keys().nth(key).expect("a key").clone();
            let went_on = match self.rng.below(20) {
                0 => self.put_in_parts(&key, dead)?,
                1..3 => self.delete(&key, dead)?,
                3..8 => self.put_version(dead)?,
                _ => {
                    let content = self.content();
                    self.may_become(&key, Some(vec![content]));
                    let answer = self.put(&key, "", content);
                    let is_there = self.judge(answer, dead)?.is_some();
                    self.became(&key, is_there)
                }
            };
            if !went_on {
                return Ok(());
            }
        }
        Ok(())
    }

    fn may_become(&mut self, key: &str, state: State) {
        self.keys.get_mut(key).expect("a key of ours").push(state);
    }

    /// The newest is what there is, if it was acknowledged.
    fn became(&mut self, key: &str, acknowledged: bool) -> bool {
        let states = self.keys.get_mut(key).expect("a key of ours");
        if acknowledged {
            states.drain(..states.len() - 1);
        }
        acknowledged
    }

    fn delete(&mut self, key: &str, dead: &AtomicBool) -> anyhow::Result<bool> {
        self.may_become(key, None);
        let answer = self.connection.ask("DELETE", key, "");
        let is_gone = self.judge(answer, dead)?.is_some();
        Ok(self.became(key, is_gone))
    }

    fn put_version(&mut self, dead: &AtomicBool) -> anyhow::Result<bool> {
        let key = self.versions.keys().next().expect("a key").clone();
        if self.versions[&key].len() >= VERSIONS_MAX {
            let (id, _) = self.versions.get_mut(&key).expect("it is there").remove(0);
            let answer = self
                .connection
                .ask("DELETE", &key, &format!("versionId={id}"));
            return Ok(self.judge(answer, dead)?.is_some());
        }
        let content = self.content();
        self.sent.push(content);
        let answer = self.put(&key, "", content);
        let Some(answer) = self.judge(answer, dead)? else {
            return Ok(false);
        };
        let id = answer.header("x-amz-version-id").to_owned();
        ensure!(!id.is_empty(), "{key}: a version has no identifier");
        let versions = self.versions.get_mut(&key).expect("it is there");
        versions.push((id, content));
        Ok(true)
    }

    fn put_in_parts(&mut self, key: &str, dead: &AtomicBool) -> anyhow::Result<bool> {
        let answer = self.connection.ask("POST", key, "uploads");
        let Some(answer) = self.judge(answer, dead)? else {
            return Ok(false);
        };
        let last = self.content();
        let first = Content {
            id: self.rng.next(),
            len: PART_BYTES,
        };
        self.upload = Some(Upload {
            key: key.to_owned(),
            id: answer.tag("UploadId").context("no UploadId")?.to_owned(),
            parts: vec![first, last],
            etags: Vec::new(),
        });
        self.go_on(dead)
    }

    /// Goes on with the upload that is under way.
    fn go_on(&mut self, dead: &AtomicBool) -> anyhow::Result<bool> {
        let Some(mut upload) = self.upload.take() else {
            return Ok(true);
        };
        let key = upload.key.clone();
        while let Some(part) = upload.parts.get(upload.etags.len()).copied() {
            let number = upload.etags.len() + 1;
            let query = format!("partNumber={number}&uploadId={}", upload.id);
            let answer = self.put(&key, &query, part);
            let Some(answer) = self.judge(answer, dead)? else {
                self.upload = Some(upload);
                return Ok(false);
            };
            upload.etags.push(answer.header("etag").to_owned());
        }
        let parts: String = (1..)
            .zip(&upload.etags)
            .map(|(number, etag)| {
                format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
            })
            .collect();
        let text = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        self.may_become(&key, Some(upload.parts));
        let query = format!("uploadId={}", upload.id);
        let answer = self.connection.send_text("POST", &key, &query, &text);
        let is_there = self.judge(answer, dead)?.is_some();
        Ok(self.became(&key, is_there))
    }

    /// Compares what is there with the ledger, and goes on with an upload that was cut off.
    fn compare(&mut self) -> anyhow::Result<()> {
        // A client whose last request was answered just before the kill still has the connection of then.
        self.connection.hang_up();
        let keys: Vec<_> = self.keys.keys().cloned().collect();
        for key in keys {
            let found = fetch(&mut self.connection, &key, "")?;
            let states = self.keys.get_mut(&key).expect("a key of ours");
            let allowed = states.iter().rev().find(|state| holds(state, &found));
            let Some(allowed) = allowed.cloned() else {
                let length = found.map(|bytes| bytes.len());
                bail!("{key} holds {length:?} bytes, which is none of {states:?}");
            };
            *states = vec![allowed];
        }
        self.compare_versions()?;
        let alive = AtomicBool::new(false);
        if let Some(upload) = &self.upload {
            let key = upload.key.clone();
            self.go_on(&alive).context("going on with an upload")?;
            self.resumed += 1;
            let found = fetch(&mut self.connection, &key, "")?;
            let newest = self.keys[&key].last().expect("at least one");
            ensure!(holds(newest, &found), "{key} is not what its parts were");
        }
        Ok(())
    }

    fn compare_versions(&mut self) -> anyhow::Result<()> {
        for (key, versions) in &self.versions {
            for (id, content) in versions {
                let found = fetch(&mut self.connection, key, &format!("versionId={id}"))?;
                ensure!(
                    holds(&Some(vec![*content]), &found),
                    "version {id} of {key} is not what was acknowledged"
                );
                self.versions_compared += 1;
            }
            // What was not acknowledged may be there too, but nothing else.
            let name = key.trim_start_matches("/versions/");
            let query = format!("prefix={name}&versions=");
            let listed = self.connection.ask("GET", "/versions", &query)?.ok()?;
            let ids = listed.text.split("<VersionId>").skip(1);
            let ids: Vec<_> = ids.filter_map(|rest| rest.split('<').next()).collect();
            for id in ids {
                let found = fetch(&mut self.connection, key, &format!("versionId={id}"));
                let is_known = versions.iter().any(|(known, _)| known == id);
                // Other clients' keys may begin with this one's.
                let Ok(Some(found)) = found else {
                    ensure!(!is_known, "version {id} of {key} is gone");
                    continue;
                };
                ensure!(
                    self.sent
                        .iter()
                        .any(|sent| sent.len == found.len() as u64 && sent.bytes() == found),
                    "version {id} of {key} holds what nobody sent"
                );
            }
        }
        Ok(())
    }
}

/// The content of an object; none if there is none.
fn fetch(connection: &mut Connection, key: &str, query: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    let answer = connection.get(key, query, &mut |_, piece| content.extend_from_slice(piece))?;
    match answer.status {
        404 => Ok(None),
        _ => answer.ok().map(|_| Some(content)),
    }
}

fn holds(state: &State, found: &Option<Vec<u8>>) -> bool {
    match (state, found) {
        (None, None) => true,
        (Some(contents), Some(found)) => {
            let mut rest = &found[..];
            contents.iter().all(|content| {
                let bytes = content.bytes();
                match rest.strip_prefix(&bytes[..]) {
                    Some(after) => {
                        rest = after;
                        true
                    }
                    None => false,
                }
            }) && rest.is_empty()
        }
        _ => false,
    }
}

/// Bytes of the pool that is filled up, and of the objects that do so.
const SMALL_POOL: &str = "256MiB";
const FILLING_BYTES: u64 = 3 << 20;

/// Fills a small pool from many sides, kills the server, and looks for what was acknowledged.
fn full_pool(options: &Options) -> anyhow::Result<()> {
    let mut place = Place::new(&options.dir, "torture-s3-full", options.cfs.as_deref())?;
    let address = place.with_s3()?;
    place.with(&["--pool-size", SMALL_POOL]);
    place.start(false)?;
    let account = place.account(address, "torture")?;
    Connection::new(&account).ask("PUT", "/full", "")?.ok()?;
    let fill = |number: u64| -> anyhow::Result<(Vec<(String, Content)>, u64)> {
        let mut connection = Connection::new(&account);
        let (mut kept, mut refused) = (Vec::new(), 0);
        // Until it is refused some times; the pool is full before that by far.
        for turn in 0..1000 {
            let content = Content {
                // Odd numbers do not shrink.
                id: (number << 32) + 2 * turn + 1,
                len: FILLING_BYTES,
            };
            let bytes = content.bytes();
            let key = format!("/full/{number}-{turn}");
            let mut sent = Sent {
                bytes: content.len,
                fill: &mut |at, piece| {
                    let at = at as usize;
                    piece.copy_from_slice(&bytes[at..at + piece.len()]);
                },
            };
            // Who is refused before the body has been read may find the connection closed: 507 all the same.
            let Ok(answer) = connection.put(&key, "", &mut sent) else {
                refused += 1;
                continue;
            };
            match answer.status {
                200 => kept.push((key, content)),
                503 | 507 => refused += 1,
                status => bail!("a full pool was answered with {status}: {}", answer.text),
            }
            if refused > 5 {
                break;
            }
        }
        Ok((kept, refused))
    };
    let filled = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..16)
            .map(|number| scope.spawn(move || fill(number)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let refused: u64 = filled.iter().map(|(_, refused)| refused).sum();
    ensure!(refused > 0, "the pool was never full");
    place.kill()?;
    place.start(false)?;
    let mut connection = Connection::new(&account);
    let kept: Vec<_> = filled.into_iter().flat_map(|(kept, _)| kept).collect();
    ensure!(!kept.is_empty(), "nothing was acknowledged");
    for (key, content) in &kept {
        let found = fetch(&mut connection, key, "")?;
        ensure!(
            holds(&Some(vec![*content]), &found),
            "{key} was acknowledged in a pool that became full, and is not there whole"
        );
    }
    for (key, _) in &kept {
        connection.ask("DELETE", key, "")?.ok()?;
    }
    let mut sent = Sent {
        bytes: FILLING_BYTES,
        fill: &mut |at, piece| piece.fill(at as u8),
    };
    connection.put("/full/again", "", &mut sent)?.ok()?;
    place.stop()?;
    output(&mut place.cfs(&["admin", "fsck"])).context("fsck of the full pool")?;
    println!(
        "a pool of {SMALL_POOL} filled up: {} objects kept through a kill, {refused} refused",
        kept.len()
    );
    place.remove()
}
