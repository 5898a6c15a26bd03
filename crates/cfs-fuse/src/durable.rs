//! Callers that are answered when what they have written is durable.
//!
//! None of the threads that receive waits for it on behalf of one caller. What little is dirty of a file they write to the
//! log themselves; what takes longer is left to threads of its own ([`Durable::flush_all`]), so that callers with much
//! to write hold up nobody else, however many they are. For the device all wait together: see [`crate::syncs`].

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use cfs_format::Lsn;
use parking_lot::Mutex;

use crate::abi::opcode;
use crate::adapter::{Adapter, Answer, Flush};
use crate::channel::Channel;
use crate::syncs::Syncs;

/// Whoever has sent a request that is answered later.
pub(crate) struct Caller {
    /// Where the request has come from, which is where the kernel looks for the reply.
    pub(crate) channel: Arc<Channel>,
    pub(crate) unique: u64,
    pub(crate) opcode: u32,
}

impl Caller {
    /// Answers without a body, or with an error number.
    ///
    /// # Errors
    /// When the device of the session fails.
    pub(crate) fn answer(&self, result: Result<(), i32>) -> io::Result<()> {
        let sent = match result {
            Ok(()) => self.channel.reply(self.unique, &[]),
            Err(errno) => self.channel.refuse(self.unique, errno),
        };
        settle(&self.channel, self.unique, self.opcode, sent)
    }
}

/// Has whoever asked end with an error if the kernel has refused the reply.
///
/// # Errors
/// When it refuses that too.
pub(crate) fn settle(
    channel: &Channel,
    unique: u64,
    opcode: u32,
    sent: io::Result<()>,
) -> io::Result<()> {
    let Err(error) = sent else { return Ok(()) };
    let operation = opcode::name(opcode);
    tracing::error!(%error, operation, "the kernel refuses a reply");
    channel.refuse(unique, libc::EIO)
}

/// A caller, and what it wants to be durable, which takes long to be written to the log.
pub(crate) type Flushing = (Flush, Caller);

/// See the module.
pub(crate) struct Durable {
    adapter: Arc<Adapter>,
    syncs: Syncs<Caller>,
}

impl Durable {
    pub(crate) fn new(adapter: Arc<Adapter>) -> Self {
        Self {
            adapter,
            syncs: Syncs::new(),
        }
    }

    /// Answers the caller when `lsn` is durable: another thread does, or this one after `begin_wait`, and whoever comes
    /// until then too. Whether this one did.
    ///
    /// # Errors
    /// When the device of the session fails. All have been answered that could be.
    pub(crate) fn wait(
        &self,
        lsn: Lsn,
        caller: Caller,
        begin_wait: impl FnOnce(),
    ) -> io::Result<bool> {
        if !self.syncs.wait(lsn, caller) {
            return Ok(false);
        }
        begin_wait();
        let mut answered = Ok(());
        self.syncs.serve(
            |lsn| self.adapter.sync_to(lsn),
            |caller, synced| {
                let sent = caller.answer(*synced);
                if answered.is_ok() {
                    answered = sent;
                }
            },
        );
        answered.map(|()| true)
    }

    /// Does what others leave to this thread, until there is nobody who could.
    ///
    /// # Errors
    /// When the device of the session fails.
    pub(crate) fn flush_all(&self, waiting: &Mutex<Receiver<Flushing>>) -> io::Result<()> {
        let next = || waiting.lock().recv();
        while let Ok((flush, caller)) = next() {
            match self.adapter.flush(flush) {
                Answer::WhenDurable(lsn) => {
                    self.wait(lsn, caller, || ())?;
                }
                Answer::Error(errno) => caller.answer(Err(errno))?,
                _ => caller.answer(Ok(()))?,
            }
        }
        Ok(())
    }
}
