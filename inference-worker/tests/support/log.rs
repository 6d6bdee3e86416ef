//! Everything that is logged, at every level, by anyone in this process.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panics while it logs").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static LOG: OnceLock<Captured> = OnceLock::new();

/// Starts capturing, for the whole test binary.
pub fn capture_log() {
    LOG.get_or_init(|| {
        let captured = Captured::default();
        let writer = captured.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::level_filters::LevelFilter::TRACE)
            .with_writer(move || writer.clone())
            .init();
        captured
    });
}

/// What was logged since [`capture_log`].
pub fn captured_log() -> String {
    let captured = LOG.get().expect("capture_log comes first");
    String::from_utf8_lossy(&captured.0.lock().expect("no test panics while it logs")).into_owned()
}
