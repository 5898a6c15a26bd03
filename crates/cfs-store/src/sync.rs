//! Locks and atomics of the store: all that a thread can wait on, and all that one thread reads while another writes.
//!
//! With the feature `models`, which nothing of the product turns on, they are shuttle's: every use of one is a place
//! where the model checker may let another thread go on (`tests/models`). Nothing may be waited for behind its back, so
//! the store takes its locks from here alone. Locks of the crates below are no part of it: none of them is held while
//! the store is called, but for those that `Maintenance` guards too.

#[cfg(not(feature = "models"))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(feature = "models"))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "models")]
pub(crate) use modelled::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(feature = "models")]
pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "models")]
mod modelled {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    use std::sync::PoisonError;

    use shuttle::sync;

    // As the locks of the product, these know no poison: when a thread has panicked, the others are on their way out.

    #[derive(Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard {
                mutex: self,
                held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)),
            }
        }

        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            let held = self.0.try_lock().ok()?;
            Some(MutexGuard {
                mutex: self,
                held: Some(held),
            })
        }
    }

    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// None only while somebody waits on a [`Condvar`].
        held: Option<sync::MutexGuard<'a, T>>,
    }

    const HELD: &str = "a guard holds its lock";

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.held.as_deref().expect(HELD)
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.held.as_deref_mut().expect(HELD)
        }
    }

    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub fn new(value: T) -> Self {
            Self(sync::RwLock::new(value))
        }

        pub fn read(&self) -> sync::RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    pub(crate) struct Condvar(sync::Condvar);

    impl Condvar {
        pub fn new() -> Self {
            Self(sync::Condvar::new())
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.held.take().expect(HELD);
            guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }

        /// Models have no time: who waits for a while may be woken at any moment, and is.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _patience: Duration) {
            guard.held = None;
            shuttle::thread::yield_now();
            guard.held = Some(guard.mutex.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}
