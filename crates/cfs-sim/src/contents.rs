//! Operations on the content of files, each on the file system and on the model.

use cfs_format::Ino;
use cfs_fs::{AllocateMode, Fs, FsError, SetAttr};

use crate::content::{Content, PAGE_BYTES};
use crate::edges::{LONG_BYTES_MAX, is_long};
use crate::look;
use crate::model::NodeId;
use crate::rng::Rng;
use crate::world::{Failure, World, accepted, ino};

/// Files do not become longer by single writes; shifts may make them so.
pub(crate) const FILE_BYTES_MAX: u64 = 600 << 10;
/// Content that is not like any other, for filling a pool.
const FILL_BYTES: u64 = 3 << 20;
const SHIFT_BYTES: u64 = PAGE_BYTES as u64;

impl World {
    /// Bytes of which many come again, so that chunks are shared, and some shrink.
    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut source = Rng::new(self.rng.below(12));
        let shrinks = self.rng.one_in(2);
        let mut bytes = Vec::with_capacity(len as usize + 8);
        while (bytes.len() as u64) < len {
            let mut word = source.next();
            if shrinks {
                word &= 0x0303_0303_0303_0303;
            }
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(len as usize);
        bytes
    }

    /// An offset in a file of this length, or its end.
    fn within(&mut self, len: u64) -> u64 {
        match self.is_about_edge(len) {
            true => self.near_edge(),
            false => self.rng.below(len.min(FILE_BYTES_MAX) + 1),
        }
    }

    /// Where a write may go in a file of this length.
    fn offset(&mut self, len: u64) -> u64 {
        match self.rng.below(4) {
            0 => len,
            1 => self.rng.length(FILE_BYTES_MAX / 2),
            _ => self.rng.below(len + 1),
        }
    }

    /// Writes to a file; the model follows, also when only a part was accepted.
    pub fn write_to(
        &mut self,
        fs: &Fs,
        file: (Ino, NodeId),
        offset: u64,
        data: &[u8],
    ) -> Result<(), Failure> {
        let written = fs.write(file.0, offset, data, false)?;
        let mut content = Content::clone(&self.model.content(file.1));
        content.write(offset, &data[..written]);
        self.model.set_content(file.1, content);
        Ok(())
    }

    pub fn write(&mut self, fs: &Fs) -> Result<(), Failure> {
        match self.any_file() {
            Some(file) => self.write_somewhere(fs, file),
            None => Ok(()),
        }
    }

    pub fn write_somewhere(&mut self, fs: &Fs, file: (String, NodeId)) -> Result<(), Failure> {
        let (path, node) = file;
        let len = self.model.content(node).len();
        let mut offset = match self.is_about_edge(len) {
            true => self.near_edge(),
            false => self.offset(len),
        };
        if offset > FILE_BYTES_MAX && !is_long(len) {
            offset = 0;
        }
        let len = 1 + self.rng.length(100 << 10);
        let data = self.bytes(len);
        self.trace(|| format!("write {path} at {offset}, {len} bytes"));
        self.write_to(fs, (ino(fs, &path)?, node), offset, &data)
    }

    /// Much that was never there before.
    pub fn fill(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(file) = self.any_file() else {
            return Ok(());
        };
        let len = 1 + self.rng.below(FILL_BYTES);
        self.fill_file(fs, file, len)
    }

    fn fill_file(
        &mut self,
        fs: &Fs,
        (path, node): (String, NodeId),
        len: u64,
    ) -> Result<(), Failure> {
        let mut source = Rng::new(self.rng.next());
        let data: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| source.next().to_le_bytes())
            .collect();
        self.trace(|| format!("fill {path} with {len} bytes"));
        self.write_to(fs, (ino(fs, &path)?, node), 0, &data)
    }

    /// Makes files until there is no room for more.
    pub fn stuff(&mut self, fs: &Fs) -> Result<(), String> {
        for count in 1..200 {
            let made = self.create_one(fs).and_then(|path| {
                let node = self.model.node(&path);
                self.fill_file(fs, (path, node), FILL_BYTES)?;
                // So that they never leave memory in parts.
                match count % 8 {
                    0 => self.syncfs(fs),
                    _ => Ok(()),
                }
            });
            match made {
                Ok(()) | Err(Failure::Refused(FsError::Quota)) => {}
                Err(Failure::Refused(FsError::NoSpace)) => return Ok(()),
                Err(Failure::Refused(error)) => return Err(format!("stuffing: {error}")),
                Err(Failure::Wrong(reason)) => return Err(reason),
            }
        }
        Ok(())
    }

    /// Writes to or reads from a file that is open, perhaps without a name.
    pub fn use_handle(&mut self, fs: &Fs) -> Result<(), Failure> {
        if self.handles.is_empty() {
            return Ok(());
        }
        let index = self.rng.below(self.handles.len() as u64) as usize;
        let (ino, node) = (self.handles[index].ino, self.handles[index].node);
        if self.rng.one_in(3) {
            return self.read_from(fs, &format!("open inode {ino}"), (ino, node));
        }
        let offset = self.within(self.model.content(node).len());
        let len = 1 + self.rng.length(30 << 10);
        let data = self.bytes(len);
        self.trace(|| format!("write open inode {ino} at {offset}, {len} bytes"));
        self.write_to(fs, (ino, node), offset, &data)
    }

    /// Truncates to nothing, writes, and closes: after a crash the old or the new content, nothing between.
    pub fn replace(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((path, node)) = self.any_file() else {
            return Ok(());
        };
        let len = 1 + self.rng.length(60 << 10);
        let data = self.bytes(len);
        self.trace(|| format!("replace {path}, {len} bytes"));
        let ino = ino(fs, &path)?;
        let old = self.model.content(node);
        set_size(fs, ino, 0)?;
        let written = match fs.write(ino, 0, &data, false) {
            Ok(written) => written,
            Err(error) => {
                self.model.set_content(node, Content::default());
                return Err(error.into());
            }
        };
        // Where there is no room for both, the old content goes before the new one is accepted.
        if (written < data.len() && !old.is_empty()) || self.trouble.may_lack_room() {
            self.model.set_content(node, Content::default());
        }
        self.model
            .set_content(node, Content::from(&data[..written]));
        accepted(fs.flush(ino))?;
        self.model.note_logged(node);
        Ok(())
    }

    /// Writes a new file, closes it, and has it take another's name: after a crash one or the other.
    pub fn replace_by_rename(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((to, _)) = self.any_file() else {
            return Ok(());
        };
        self.create(fs)?;
        let Some((from, node)) = self.any_file() else {
            return Ok(());
        };
        if from == to {
            return Ok(());
        }
        let len = 1 + self.rng.length(60 << 10);
        let data = self.bytes(len);
        self.trace(|| format!("write {from} at 0, {len} bytes, to take a name"));
        self.write_to(fs, (ino(fs, &from)?, node), 0, &data)?;
        self.rename_path(fs, &from, &to, false)
    }

    pub fn close_file(&mut self, fs: &Fs) -> Result<(), Failure> {
        match self.any_file() {
            Some(file) => self.close(fs, file),
            None => Ok(()),
        }
    }

    pub fn close(&mut self, fs: &Fs, (path, node): (String, NodeId)) -> Result<(), Failure> {
        self.trace(|| format!("close {path}"));
        accepted(fs.flush(ino(fs, &path)?))?;
        self.model.note_logged(node);
        if self.rng.one_in(2) {
            // What the thread that writes the log does.
            accepted(fs.write_log())?;
        }
        Ok(())
    }

    pub fn truncate(&mut self, fs: &Fs) -> Result<(), Failure> {
        match self.any_file() {
            Some(file) => self.truncate_file(fs, file),
            None => Ok(()),
        }
    }

    pub fn truncate_file(&mut self, fs: &Fs, file: (String, NodeId)) -> Result<(), Failure> {
        let (path, node) = file;
        let mut content = Content::clone(&self.model.content(node));
        let size = match self.rng.below(3) {
            _ if self.is_about_edge(content.len()) => self.near_edge(),
            0 => self.rng.length(FILE_BYTES_MAX / 2),
            1 => self.rng.length(content.len()),
            _ => self.rng.below(content.len() + 1),
        };
        self.trace(|| format!("truncate {path} to {size}"));
        match set_size(fs, ino(fs, &path)?, size) {
            Err(FsError::NoSpace) if size <= content.len() => {
                let text = "truncating was refused for want of room".to_owned();
                return Err(Failure::Wrong(text));
            }
            other => other?,
        }
        content.resize(size);
        self.model.set_content(node, content);
        Ok(())
    }

    /// fallocate(2) in all its modes.
    pub fn allocate(&mut self, fs: &Fs) -> Result<(), Failure> {
        match self.any_file() {
            Some(file) => self.allocate_in(fs, file),
            None => Ok(()),
        }
    }

    pub fn allocate_in(&mut self, fs: &Fs, file: (String, NodeId)) -> Result<(), Failure> {
        let (path, node) = file;
        let mut content = Content::clone(&self.model.content(node));
        let size = content.len();
        let mode = [
            AllocateMode::Allocate { keep_size: false },
            AllocateMode::Allocate { keep_size: true },
            AllocateMode::Punch,
            AllocateMode::Punch,
            AllocateMode::Zero { keep_size: false },
            AllocateMode::Zero { keep_size: true },
            AllocateMode::Collapse,
            AllocateMode::Insert,
        ][self.rng.below(8) as usize];
        let mut offset = match self.is_about_edge(size) {
            true => self.near_edge(),
            false => self.rng.below(size + 1),
        };
        let mut len = 1 + self.rng.length(64 << 10);
        let shifts = matches!(mode, AllocateMode::Collapse | AllocateMode::Insert);
        if shifts {
            offset = offset / SHIFT_BYTES * SHIFT_BYTES;
            len = len.next_multiple_of(SHIFT_BYTES);
            let fits = match mode {
                AllocateMode::Insert => {
                    let most = match is_long(size) {
                        true => LONG_BYTES_MAX,
                        false => FILE_BYTES_MAX,
                    };
                    offset < size && size + len <= most
                }
                _ => offset + len < size,
            };
            if !fits {
                return Ok(());
            }
        }
        self.trace(|| format!("allocate {path} {mode:?} at {offset}, {len} bytes"));
        let end = offset + len;
        if matches!(mode, AllocateMode::Punch | AllocateMode::Zero { .. }) {
            content.zero(offset, end);
        }
        let ino = ino(fs, &path)?;
        let done = fs.fallocate(ino, mode, offset, len, false);
        if matches!(mode, AllocateMode::Zero { .. }) {
            // First a hole, which is in the log at once, and then the new size.
            if done.is_ok() {
                self.model.set_content(node, content.clone());
                self.model.note_logged(node);
            } else {
                self.take_over(fs, (ino, node), content.clone())?;
            }
        }
        done?;
        match mode {
            AllocateMode::Allocate { keep_size: false }
            | AllocateMode::Zero { keep_size: false } => {
                content.resize(content.len().max(end));
            }
            AllocateMode::Collapse => content.collapse(offset, len),
            AllocateMode::Insert => content.insert(offset, len),
            _ => {}
        }
        self.model.set_content(node, content);
        if shifts || mode == AllocateMode::Punch {
            self.model.note_logged(node);
        }
        Ok(())
    }

    /// After a failure in the middle: the file has its content of before, or `half`.
    fn take_over(&mut self, fs: &Fs, file: (Ino, NodeId), half: Content) -> Result<(), Failure> {
        let before = self.model.content(file.1);
        if let Ok(now) = look::content(fs, file.0, before.len() + 1)
            && now != *before
        {
            if now != half {
                return Err(Failure::Wrong(
                    "a failed operation left something else".into(),
                ));
            }
            self.model.set_content(file.1, half);
        }
        Ok(())
    }

    pub fn copy(&mut self, fs: &Fs) -> Result<(), Failure> {
        match self.any_file() {
            Some(target) => self.copy_to(fs, target),
            None => Ok(()),
        }
    }

    pub fn copy_to(&mut self, fs: &Fs, target: (String, NodeId)) -> Result<(), Failure> {
        let (to, target_node) = target;
        let Some((from, source_node)) = self.any_file() else {
            return Ok(());
        };
        if source_node == target_node {
            return Ok(());
        }
        let source = self.model.content(source_node);
        let mut target = Content::clone(&self.model.content(target_node));
        let source_offset = match self.is_about_edge(source.len()) {
            true => self.near_edge().min(source.len()),
            false => self.rng.below(source.len() + 1),
        };
        let target_offset = self.within(target.len());
        let len = 1 + self.rng.length(64 << 10);
        self.trace(|| {
            format!("copy {from} at {source_offset} to {to} at {target_offset}, {len} bytes")
        });
        let copied = fs.copy_range(
            ino(fs, &from)?,
            source_offset,
            ino(fs, &to)?,
            target_offset,
            len,
        )?;
        let expected = len.min(source.len() - source_offset);
        if copied != expected {
            let text = format!("copied {copied} bytes instead of {expected}");
            return Err(Failure::Wrong(text));
        }
        if copied == 0 {
            return Ok(());
        }
        let data = source.range(source_offset, source_offset + copied);
        target.write(target_offset, &data);
        self.model.set_content(target_node, target);
        Ok(())
    }

    pub fn read(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((path, node)) = self.any_file() else {
            return Ok(());
        };
        self.read_from(fs, &path, (ino(fs, &path)?, node))
    }

    fn read_from(&mut self, fs: &Fs, name: &str, file: (Ino, NodeId)) -> Result<(), Failure> {
        let size = self.model.content(file.1).len();
        let offset = match self.is_about_edge(size) {
            true => self.near_edge(),
            false => self.rng.below(size + 10),
        };
        let len = 1 + self.rng.length(128 << 10);
        self.read_range(fs, name, file, (offset, len))
    }

    pub fn read_range(
        &mut self,
        fs: &Fs,
        name: &str,
        file: (Ino, NodeId),
        (offset, len): (u64, u64),
    ) -> Result<(), Failure> {
        self.trace(|| format!("read {name} at {offset}, {len} bytes"));
        let mut out = Vec::new();
        let parts = accepted(fs.read_parts(file.0, offset, len as usize, &mut out))?;
        if let Some(parts) = parts {
            out = parts.slices().collect::<Vec<_>>().concat();
        }
        if out != self.model.content(file.1).range(offset, offset + len) {
            let text = format!("{name} reads wrong at {offset}, {len} bytes");
            return Err(Failure::Wrong(text));
        }
        Ok(())
    }
}

fn set_size(fs: &Fs, ino: Ino, size: u64) -> Result<(), FsError> {
    let set = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.setattr(ino, &set).map(drop)
}
