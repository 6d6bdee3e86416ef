//! The coordinator's directory: `state.json`, `masters-N.safetensors` of the running round, `updates/NAME.safetensors`.
//!
//! Every file appears whole or not at all, and state.json last: whatever it names is there.

use super::rounds::State;
use crate::workshop::WorkshopError;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// One coordinator's directory, locked.
pub(super) struct Store {
    dir: PathBuf,
    /// Held as long as this process uses the directory.
    _lock: File,
}

impl Store {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`WorkshopError::Busy`] if another coordinator uses it.
    pub(super) fn open(dir: &Path) -> Result<Self, WorkshopError> {
        let updates = dir.join("updates");
        fs::create_dir_all(&updates).map_err(WorkshopError::file("create", &updates))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(WorkshopError::file("create", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(WorkshopError::Busy(dir.to_path_buf())),
            Err(TryLockError::Error(source)) => Err(WorkshopError::file("lock", &path)(source)),
        }
    }

    /// Log of the rounds.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("rounds.jsonl")
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What an earlier process stored.
    pub(super) fn state(&self) -> Result<Option<State>, WorkshopError> {
        let path = self.dir.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(WorkshopError::json(&path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(WorkshopError::file("read", &path)(error)),
        }
    }

    pub(super) fn save(&self, state: &State) -> Result<(), WorkshopError> {
        let path = self.dir.join("state.json");
        let bytes = serde_json::to_vec_pretty(state).map_err(WorkshopError::json(&path))?;
        replace(&path, &bytes)
    }

    /// Masters that round `round`, from 0, begins with.
    pub(super) fn masters(&self, round: usize) -> Result<Vec<u8>, WorkshopError> {
        let path = self.masters_path(round);
        fs::read(&path).map_err(WorkshopError::file("read", &path))
    }

    pub(super) fn save_masters(&self, round: usize, bytes: &[u8]) -> Result<(), WorkshopError> {
        replace(&self.masters_path(round), bytes)
    }

    pub(super) fn update(&self, client: &str) -> Result<Vec<u8>, WorkshopError> {
        let path = self.update_path(client);
        fs::read(&path).map_err(WorkshopError::file("read", &path))
    }

    pub(super) fn save_update(&self, client: &str, bytes: &[u8]) -> Result<(), WorkshopError> {
        replace(&self.update_path(client), bytes)
    }

    /// Removes what a finished round needed. What is left behind costs disk, and nothing else.
    pub(super) fn forget_round(&self, round: usize, clients: impl Iterator<Item = impl AsRef<str>>) {
        let updates = clients.map(|client| self.update_path(client.as_ref()));
        for path in updates.chain([self.masters_path(round)]) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "a file of a finished round stays");
            }
        }
    }

    fn masters_path(&self, round: usize) -> PathBuf {
        self.dir.join(format!("masters-{round}.safetensors"))
    }

    fn update_path(&self, client: &str) -> PathBuf {
        self.dir.join("updates").join(format!("{client}.safetensors"))
    }
}

/// Writes beside the file, to the disk, and puts it in its place.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), WorkshopError> {
    let partial = path.with_extension("partial");
    let failed = |doing| WorkshopError::file(doing, path);
    let mut file = File::create(&partial).map_err(failed("create"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&partial, path).map_err(failed("replace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_coordinator_and_remembers() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("work");
        let store = Store::open(&dir).unwrap();
        assert!(matches!(Store::open(&dir), Err(WorkshopError::Busy(_))));
        assert_eq!(store.state().unwrap(), None);
        let mut state = State::new("recipe".into());
        state.join("a", 3);
        state.deliver("a", 3);
        store.save(&state).unwrap();
        store.save_masters(0, b"m").unwrap();
        store.save_update("a", b"u").unwrap();
        drop(store);
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.state().unwrap(), Some(state));
        assert_eq!((store.masters(0).unwrap(), store.update("a").unwrap()), (b"m".to_vec(), b"u".to_vec()));
        store.forget_round(0, ["a", "never"].iter());
        assert!(store.masters(0).is_err() && store.update("a").is_err());
    }

    #[test]
    fn a_damaged_state_is_named_and_not_taken_for_a_beginning() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        fs::write(root.path().join("state.json"), "{").unwrap();
        assert!(matches!(store.state(), Err(WorkshopError::Json { .. })));
    }
}
