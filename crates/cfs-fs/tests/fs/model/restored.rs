//! What a snapshot shows, against what is there: differences, sizes, and bringing it back.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::{Change, Fs, FsError, RestoreObserver};

use super::Run;
use crate::pool::assert_clean;

/// A path's inode in the tables, attributes, and content or target.
type Look = (u64, u32, u32, BTreeMap<Vec<u8>, Vec<u8>>, Vec<u8>);

/// Everything below a directory, by path.
fn look(fs: &Fs, root: Ino) -> BTreeMap<String, Look> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(String::new(), root)];
    while let Some((path, ino)) = waiting.pop() {
        let limit = fs.dir_limit(ino).expect("limit");
        for entry in fs.read_dir(ino, 0, limit, usize::MAX).expect("read_dir") {
            let name = String::from_utf8(entry.name).expect("utf-8");
            let path = match path.is_empty() {
                true => name,
                false => format!("{path}/{name}"),
            };
            let attr = fs.getattr(entry.ino).expect("getattr");
            let mut content = Vec::new();
            match attr.kind() {
                libc::S_IFDIR => waiting.push((path.clone(), entry.ino)),
                libc::S_IFREG => fs
                    .read(entry.ino, 0, attr.size as usize, &mut content)
                    .expect("read"),
                libc::S_IFLNK => content = fs.readlink(entry.ino).expect("readlink"),
                _ => {}
            }
            let names = fs.listxattr(entry.ino).expect("list");
            let xattrs = names.into_iter().map(|name| {
                let value = fs.getxattr(entry.ino, &name).expect("get");
                (name, value)
            });
            let number = entry.ino.base();
            let seen = (number.0, attr.mode, attr.nlink, xattrs.collect(), content);
            found.insert(path, seen);
        }
    }
    found
}

/// Paths that stand for the same inode are those of the other tree.
fn same_tree(one: &BTreeMap<String, Look>, other: &BTreeMap<String, Look>) {
    let paths = |tree: &BTreeMap<String, Look>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(one), paths(other));
    let mut partners = BTreeMap::new();
    for (path, left) in one {
        let right = &other[path];
        let strip = |look: &Look| (look.1, look.2, look.3.clone(), look.4.clone());
        assert!(strip(left) == strip(right), "{path}");
        assert_eq!(
            *partners.entry(left.0).or_insert(right.0),
            right.0,
            "{path}"
        );
    }
}

fn check_differences(fs: &Fs, then_root: Ino, now_root: Ino) {
    let found = fs.differences(then_root, now_root, || true);
    let found = found.expect("differences").expect("to the end");
    let (then, now) = (look(fs, then_root), look(fs, now_root));
    let mut explained = BTreeMap::new();
    let mut moved = Vec::new();
    for difference in &found {
        let path = String::from_utf8(difference.path.clone()).expect("utf-8");
        match &difference.change {
            Change::Created => assert!(now.contains_key(&path), "{difference:?}"),
            Change::Deleted => assert!(then.contains_key(&path), "{difference:?}"),
            Change::Changed => assert!(now.contains_key(&path), "{difference:?}"),
            Change::Renamed { from, .. } => {
                let from = String::from_utf8(from.clone()).expect("utf-8");
                assert_eq!(then[&from].0, now[&path].0, "{difference:?}");
                moved.push((from, path.clone()));
            }
        }
        explained.insert(path, difference);
    }
    let below = |path: &str, above: &str| {
        let rest = path.strip_prefix(above);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for (path, was) in &then {
        let same = now.get(path).is_some_and(|is| is.0 == was.0);
        // One that another has replaced which is no different needs no word.
        let equal = now
            .get(path)
            .is_some_and(|is| (was.1, &was.3, &was.4) == (is.1, &is.3, &is.4));
        let told = equal
            || explained.contains_key(path)
            || moved.iter().any(|(from, _)| below(path, from));
        assert!(same || told, "{path} is gone: {found:?}");
    }
    for (path, is) in &now {
        let told = explained.contains_key(path);
        let along = moved.iter().any(|(_, to)| below(path, to));
        match then.get(path) {
            Some(was) if was.0 == is.0 => {
                let differs = was.1 != is.1 || was.3 != is.3 || was.4 != is.4;
                assert!(told || !differs, "{path} has changed: {found:?}");
            }
            Some(was) if (was.1, &was.3, &was.4) == (is.1, &is.3, &is.4) => {}
            _ => assert!(told || along, "{path} is new: {found:?}"),
        }
    }
}

/// Stored bytes of chunks that are referred to.
fn referenced_bytes(fs: &Fs) -> u64 {
    let chunks = fs.store().freeze().chunks();
    let chunks = chunks.map(|chunk| chunk.expect("a chunk").1);
    let held = chunks.filter(|chunk| chunk.refs.get() > 0);
    held.map(|chunk| u64::from(chunk.record_len.get())).sum()
}

struct Quiet;

impl RestoreObserver for Quiet {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{}: {error}", String::from_utf8_lossy(path));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

#[test]
fn what_a_snapshot_shows_is_compared_and_brought_back() {
    for seed in 1..=12 {
        eprintln!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..300 {
            run.step();
        }
        // Of a clone as well as of the volume.
        run.world = seed as usize % run.worlds.len();
        let (now, path) = run.worlds[run.world].clone();
        let path = path.as_bytes();
        let kept = run.fs.snapshot_create(path, b"kept").expect("a snapshot");
        for _ in 0..200 {
            run.step();
        }
        run.fs.syncfs().expect("syncfs");
        let root = now.in_view(kept.view).expect("a small number");
        check_differences(&run.fs, root, now);

        // What the sizes say is what comes back, when nothing is put together again meanwhile.
        run.pool.sleep_ms(60_000);
        for _ in 0..100 {
            run.fs.tick().expect("tick");
        }
        let all = run.fs.snapshots(None).expect("snapshots");
        let sizes = run.fs.snapshot_sizes(&all, |_| false).expect("sizes");
        for (snapshot, sizes) in all.iter().zip(sizes) {
            assert_eq!(sizes.exclusive_bytes, sizes.freed_bytes);
            let is_cloned = !run.fs.clones_of(snapshot).is_empty();
            if snapshot.view == kept.view || is_cloned || run.rng.below(2) == 0 {
                continue;
            }
            let before = referenced_bytes(&run.fs);
            run.fs.snapshot_delete(snapshot).expect("delete");
            for _ in 0..20 {
                run.fs.tick().expect("tick");
            }
            let freed = before - referenced_bytes(&run.fs);
            assert_eq!(freed, sizes.exclusive_bytes);
            break;
        }

        let before = referenced_bytes(&run.fs);
        let restore = |fs: &Fs| fs.snapshot_restore(&kept, path, b"", true, &mut Quiet);
        restore(&run.fs).expect("restored");
        run.fs.syncfs().expect("syncfs");
        same_tree(&look(&run.fs, root), &look(&run.fs, now));
        assert!(referenced_bytes(&run.fs) <= before, "it is by reference");
        assert_clean(&run.fs);
        let again = restore(&run.fs).expect("restored");
        assert_eq!((again.restored, again.removed, again.problems), (0, 0, 0));
        let (pool, fs) = (run.pool.power_cut(seed), run.fs);
        drop(fs);
        let fs = pool.open();
        same_tree(&look(&fs, root), &look(&fs, now));
        assert_clean(&fs);
    }
}
