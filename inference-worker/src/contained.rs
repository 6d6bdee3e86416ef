//! Panics of libraries that read what strangers wrote: caught, and told by their place alone, because a panic's message
//! may quote what was read.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A library that panicked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the library that reads it panicked ({place})")]
pub(crate) struct Panicked {
    /// File name and line.
    place: String,
}

/// Runs `work`; a panic in it reaches neither the log nor the caller.
///
/// # Errors
/// [`Panicked`]. What `work` was changing is then in no known state: pass it what is only read, or what is dropped.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if INSIDE.get() == 0 {
                before(panic);
            } else {
                let place = panic.location().map(|at| {
                    let file = Path::new(at.file()).file_name().map(|name| name.to_string_lossy().into_owned());
                    format!("{}:{}", file.unwrap_or_default(), at.line())
                });
                PLACE.set(place.unwrap_or_default());
            }
        }));
    });
    INSIDE.set(INSIDE.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(INSIDE.get() - 1);
    outcome.map_err(|_| Panicked { place: PLACE.take() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_by_its_place_without_its_words() {
        let broken = contained(|| panic!("SECRET {}", 1)).unwrap_err();
        let said = format!("{broken} {broken:?}");
        assert!(said.contains("contained.rs:") && !said.contains("SECRET"), "{said}");
        assert_eq!(contained(|| contained(|| -> u8 { panic!("inner") }).is_err()), Ok(true));
        assert_eq!(contained(|| 5), Ok(5));
    }
}
