//! Every file that a fuzzer ever broke the device with, and every file of the corpora, once more.

use std::path::{Path, PathBuf};
use vhostvsock_fuzz::TARGETS;

/// The files in a directory beside this crate's manifest, by name.
fn files(directory: &str, target: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory).join(target);
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Runs every target over its files in a directory, and says which file it is at where that fails; how many there were.
fn replay(directory: &str) -> usize {
    let mut count = 0;
    for (target, run) in TARGETS {
        for path in files(directory, target) {
            let data = std::fs::read(&path).expect("a file of the repository");
            let done = std::panic::catch_unwind(|| run(&data));
            assert!(done.is_ok(), "{} breaks {target} again", path.display());
            count += 1;
        }
    }
    count
}

#[test]
fn what_broke_the_device_once_does_so_no_more() {
    replay("crashes");
}

#[test]
fn what_the_fuzzers_kept_breaks_nothing() {
    assert!(replay("corpus") > 0, "the corpora are gone");
}
