//! The threads that seal jobs, one a lane of the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use super::Core;
use super::body::{FileState, Job};

/// The way to the threads. There may be none.
pub(super) struct Lanes {
    sender: Sender<Task>,
    receiver: Receiver<Task>,
    thread_count: usize,
    stopping: AtomicBool,
}

enum Task {
    Seal(Arc<FileState>, Arc<Job>),
    Stop,
}

impl Lanes {
    /// The queue is bounded by the memory that its jobs may hold.
    pub(super) fn new(thread_count: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self {
            sender,
            receiver,
            thread_count,
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn thread_count(&self) -> usize {
        self.thread_count
    }

    /// Starts the threads, as they are asked for.
    pub(super) fn start(core: &Arc<Core>) -> impl Iterator<Item = std::io::Result<JoinHandle<()>>> {
        (0..core.lanes.thread_count).map(|lane| {
            let core = Arc::clone(core);
            std::thread::Builder::new()
                .name(format!("cfs-seal-{lane}"))
                .spawn(move || core.lanes.work(&core, lane))
        })
    }

    /// Hands a job to a thread; false when there is none.
    pub(super) fn submit(&self, file: &Arc<FileState>, job: &Arc<Job>) -> bool {
        self.thread_count > 0
            && self
                .sender
                .send(Task::Seal(Arc::clone(file), Arc::clone(job)))
                .is_ok()
    }

    fn work(&self, core: &Core, lane: usize) {
        for task in &self.receiver {
            match task {
                Task::Seal(file, job) if !self.stopping.load(Ordering::Relaxed) => {
                    core.run(&file, &job, lane);
                }
                Task::Seal(..) => {}
                Task::Stop => return,
            }
        }
    }

    /// Has the threads end after what each is doing now. What waits is dropped, as in a crash.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        for _ in 0..self.thread_count {
            // The receiver lives in the same struct.
            let _ = self.sender.send(Task::Stop);
        }
    }
}
