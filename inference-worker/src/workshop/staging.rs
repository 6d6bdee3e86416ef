//! Directories that appear whole or not at all.

use super::WorkshopError;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// A directory under construction beside its destination. Dropped without [`Staging::publish`], it is removed; what a
/// killed process left is removed by the next one.
pub struct Staging {
    partial: PathBuf,
    destination: PathBuf,
    /// Locked as long as this process builds here; the system unlocks it when the process ends, however it ends.
    _lock: File,
    published: bool,
}

impl Staging {
    /// An empty directory that will become `destination`.
    ///
    /// # Errors
    /// [`WorkshopError::Busy`] if another process builds the same destination; [`WorkshopError::File`] if the parent
    /// directory cannot be written; [`WorkshopError::Refused`] if the destination has no name.
    pub fn new(destination: &Path) -> Result<Self, WorkshopError> {
        let name = destination.file_name().ok_or_else(|| {
            WorkshopError::Refused(format!("--out must name a directory to make but is {}", destination.display()))
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let partial = destination.with_file_name(hidden);
        fs::create_dir_all(&partial).map_err(WorkshopError::file("create", &partial))?;
        let lock = File::open(&partial).map_err(WorkshopError::file("open", &partial))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(WorkshopError::Busy(destination.to_path_buf())),
            Err(TryLockError::Error(source)) => return Err(WorkshopError::file("lock", &partial)(source)),
        }
        let staging = Self { partial, destination: destination.to_path_buf(), _lock: lock, published: false };
        recover(destination)?;
        staging.clear()?;
        Ok(staging)
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Puts the directory in its place, replacing what is there. Its content is on the disk before it has its name: a
    /// machine that loses power finds the old one or the new one.
    ///
    /// # Errors
    /// [`WorkshopError::File`] if the disk does not take it or a rename fails; the destination is then as it was.
    pub fn publish(mut self) -> Result<(), WorkshopError> {
        sync(&self.partial)?;
        let old = replaced(&self.destination);
        let replaces = self.destination.exists();
        if old.exists() {
            fs::remove_dir_all(&old).map_err(WorkshopError::file("remove", &old))?;
        }
        if replaces {
            fs::rename(&self.destination, &old).map_err(WorkshopError::file("replace", &self.destination))?;
        }
        if let Err(error) = fs::rename(&self.partial, &self.destination) {
            if replaces {
                // Put the old one back; if that fails, too, the first error says where things stand.
                let _ = fs::rename(&old, &self.destination);
            }
            return Err(WorkshopError::file("create", &self.destination)(error));
        }
        self.published = true;
        if replaces {
            fs::remove_dir_all(&old).map_err(WorkshopError::file("remove", &old))?;
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), WorkshopError> {
        for entry in fs::read_dir(&self.partial).map_err(WorkshopError::file("read", &self.partial))? {
            let path = entry.map_err(WorkshopError::file("read", &self.partial))?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(WorkshopError::file("remove", &path))?;
        }
        Ok(())
    }
}

/// Everything below a directory, and the directories themselves.
fn sync(dir: &Path) -> Result<(), WorkshopError> {
    for entry in fs::read_dir(dir).map_err(WorkshopError::file("read", dir))? {
        let path = entry.map_err(WorkshopError::file("read", dir))?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(WorkshopError::file("write", &path))?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(WorkshopError::file("write", dir))
}

/// Puts back what a process had moved aside for its successor when it was killed, if nothing came in its place.
///
/// # Errors
/// [`WorkshopError::File`] if the rename fails.
pub fn recover(destination: &Path) -> Result<(), WorkshopError> {
    let old = replaced(destination);
    if destination.exists() || !old.exists() {
        return Ok(());
    }
    fs::rename(&old, destination).map_err(WorkshopError::file("put back", destination))
}

/// Where a directory is while its successor takes its place.
fn replaced(destination: &Path) -> PathBuf {
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(destination.file_name().unwrap_or_default());
    hidden.push(".replaced");
    destination.with_file_name(hidden)
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // Nothing to report to: the next run removes what could not be removed now.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("pair");
        {
            let staging = Staging::new(&out).unwrap();
            fs::write(staging.path().join("half"), "x").unwrap();
            assert!(matches!(Staging::new(&out), Err(WorkshopError::Busy(_))));
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "an unpublished directory leaves nothing");

        // What a killed process left is not mixed into the next result.
        fs::create_dir(root.path().join(".pair.partial")).unwrap();
        fs::write(root.path().join(".pair.partial/stale"), "x").unwrap();
        let staging = Staging::new(&out).unwrap();
        fs::write(staging.path().join("first"), "1").unwrap();
        staging.publish().unwrap();
        let staging = Staging::new(&out).unwrap();
        fs::write(staging.path().join("second"), "2").unwrap();
        staging.publish().unwrap();
        let names = |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(&out), ["second"]);
        assert_eq!(names(root.path()), ["pair"]);
    }

    #[test]
    fn what_was_moved_aside_when_a_process_was_killed_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("checkpoint");
        let aside = root.path().join(".checkpoint.replaced");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("state"), "good").unwrap();
        recover(&out).unwrap();
        assert_eq!(fs::read_to_string(out.join("state")).unwrap(), "good");
        assert!(!aside.exists());
        // Killed a moment later, the new one is there, and the old one is only rubbish.
        fs::create_dir(&aside).unwrap();
        recover(&out).unwrap();
        let staging = Staging::new(&out).unwrap();
        fs::write(staging.path().join("state"), "newer").unwrap();
        staging.publish().unwrap();
        assert_eq!(fs::read_to_string(out.join("state")).unwrap(), "newer");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_destination_needs_a_name() {
        assert!(matches!(Staging::new(Path::new("/")), Err(WorkshopError::Refused(_))));
    }
}
