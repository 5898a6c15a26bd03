//! SIGTERM, SIGINT and SIGHUP as messages.
//!
//! The first one asks for an orderly end. Later ones only say that the end is under way: what was accepted is written
//! first, and killing the process with SIGKILL is always safe but loses what was not yet durable.

use std::io;

use crossbeam_channel::{Receiver, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Starts to listen; each signal is one message.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn listen() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, receiver) = unbounded();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}
