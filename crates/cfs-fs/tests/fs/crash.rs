//! After a power cut the namespace is a prefix of what was done, at least as long as what was synced; and a file that
//! replaces another by rename or truncation is never found empty.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::{Caller, Fs, RenameFlags, SetAttr};

use crate::pool::{Pool, Rng, assert_clean};

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    umask: 0,
};

/// Paths of the whole tree with what each is.
type Listing = BTreeMap<Vec<u8>, (Ino, u32, u32)>;

fn list(fs: &Fs) -> Listing {
    let mut listing = Listing::new();
    let mut directories = vec![(Ino::ROOT, Vec::new())];
    while let Some((directory, path)) = directories.pop() {
        let limit = fs.dir_limit(directory).expect("limit");
        for entry in fs
            .read_dir(directory, 0, limit, usize::MAX)
            .expect("read_dir")
        {
            let path = [&path[..], b"/", &entry.name].concat();
            let attr = fs.getattr(entry.ino).expect("getattr");
            listing.insert(path.clone(), (attr.ino, attr.mode, attr.nlink));
            if entry.kind == libc::S_IFDIR {
                directories.push((entry.ino, path));
            }
        }
    }
    listing
}

fn step(fs: &Fs, rng: &mut Rng, listing: &Listing) {
    let mut directories: Vec<Ino> = listing
        .values()
        .filter(|(_, mode, _)| mode & libc::S_IFMT == libc::S_IFDIR)
        .map(|(ino, ..)| *ino)
        .collect();
    directories.push(Ino::ROOT);
    let parent = *rng.pick(&directories);
    let to = *rng.pick(&directories);
    let name = [b'a' + rng.below(6) as u8];
    let new_name = [b'a' + rng.below(6) as u8];
    // That an operation is refused is as good.
    match rng.below(9) {
        0 | 1 => drop(fs.create(parent, &name, 0o644, &CALLER)),
        2 => drop(fs.mkdir(parent, &name, 0o755, &CALLER)),
        3 => drop(fs.symlink(parent, &name, b"target", &CALLER)),
        4 => drop(fs.unlink(parent, &name)),
        5 => drop(fs.rmdir(parent, &name)),
        6 => {
            let (from, to) = ((parent, &name[..]), (to, &new_name[..]));
            let flags = RenameFlags::default();
            if let Ok(Some(held)) = fs.rename_leaving_whiteout(from, to, flags, &CALLER) {
                fs.end_hold(held).expect("end the hold");
            }
        }
        _ => {
            let flags = RenameFlags {
                exchange: rng.below(3) == 0,
                no_replace: false,
            };
            drop(fs.rename(parent, &name, to, &new_name, flags));
        }
    }
}

#[test]
fn a_power_cut_leaves_a_prefix() {
    for seed in 1..=12 {
        eprintln!("seed {seed}");
        let mut rng = Rng::new(seed);
        let pool = Pool::new(128);
        let fs = pool.open();
        let mut states = vec![list(&fs)];
        let mut synced = 0;
        for _ in 0..150 {
            let state = list(&fs);
            step(&fs, &mut rng, &state);
            states.push(list(&fs));
            match rng.below(20) {
                0 => {
                    fs.store().sync().expect("sync");
                    synced = states.len() - 1;
                }
                1 => {
                    pool.sleep_ms(100);
                    fs.tick().expect("tick");
                }
                2 => {
                    let cut = pool.power_cut(rng.next()).open();
                    let found = list(&cut);
                    let prefix = states.iter().rposition(|state| *state == found);
                    assert!(
                        prefix.is_some_and(|prefix| prefix >= synced),
                        "state {prefix:?} of {}, synced up to {synced}",
                        states.len()
                    );
                    assert_clean(&cut);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn replaced_files_are_never_empty() {
    for seed in 1..=30 {
        let mut rng = Rng::new(seed);
        let pool = Pool::new(128);
        let fs = pool.open();
        let content = |version: u8, len: usize| vec![version; len];
        let target = fs
            .create(Ino::ROOT, b"target", 0o644, &CALLER)
            .expect("create")
            .ino;
        fs.write(target, 0, &content(1, 50_000), false)
            .expect("write");
        fs.syncfs().expect("syncfs");
        for version in 2..6 {
            let len = [100, 5_000, 300_000][rng.below(3) as usize];
            if rng.below(2) == 0 {
                let new = fs
                    .create(Ino::ROOT, b"new", 0o644, &CALLER)
                    .expect("create")
                    .ino;
                fs.write(new, 0, &content(version, len), false)
                    .expect("write");
                fs.rename(
                    Ino::ROOT,
                    b"new",
                    Ino::ROOT,
                    b"target",
                    RenameFlags::default(),
                )
                .expect("rename");
            } else {
                let ino = fs.lookup(Ino::ROOT, b"target").expect("lookup").ino;
                fs.open(ino).expect("open");
                let empty = SetAttr {
                    size: Some(0),
                    ..SetAttr::default()
                };
                fs.setattr(ino, &empty).expect("truncate");
                fs.write(ino, 0, &content(version, len), false)
                    .expect("write");
                fs.flush(ino).expect("flush");
                fs.release(ino).expect("release");
            }
            match rng.below(3) {
                0 => {
                    pool.sleep_ms(10_000);
                    fs.tick().expect("tick");
                }
                // Durable names, while data that are only in memory stay there.
                1 => fs.store().sync().expect("sync"),
                _ => {}
            }
            let cut = pool.power_cut(rng.next()).open();
            let found = cut.lookup(Ino::ROOT, b"target").expect("the name is there");
            let mut data = Vec::new();
            cut.read(found.ino, 0, 1 << 20, &mut data).expect("read");
            assert!(
                !data.is_empty(),
                "seed {seed}: empty after version {version}"
            );
            assert!(
                data.iter().all(|byte| *byte == data[0]),
                "seed {seed}: mixed content"
            );
            assert_clean(&cut);
        }
    }
}
