//! How much memory this process has had at most.

/// Most bytes that were resident at one time, mapped files included; `None` where the system does not say.
pub fn peak() -> Option<u64> {
    of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// `at most 116 MB of memory`, or nothing.
pub fn sentence() -> String {
    peak().map_or_else(String::new, |bytes| format!("; at most {:.0} MB of memory", bytes as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_peak_is_read() {
        assert_eq!(of("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n"), Some(2 * 1024 * 1024));
        assert_eq!(of("VmRSS:\t 1024 kB\n"), None);
        assert!(peak().is_none_or(|bytes| bytes > 1 << 20));
    }
}
