//! A configuration of any bytes: no panic, each problem has its place inside the file and is shown
//! without a byte that a terminal acts upon, and what was accepted is accepted again.
#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use libfuzzer_sys::{Corpus, fuzz_target};
use portcullis::config::{self, Diagnostics, Severity};

/// Where the files are that a configuration may name: `site.crt` and `site.key`, `list`, `token`.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

fn make_folder() -> PathBuf {
    let folder = std::env::temp_dir().join("portcullis-fuzz-config");
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    let site = rcgen::generate_simple_self_signed(["example.com".to_owned()]).expect("a certificate");
    let files = [
        ("site.crt", site.cert.pem()),
        ("site.key", site.signing_key.serialize_pem()),
        ("list", "10.0.0.0/8\n2001:db8::/32\n".to_owned()),
        ("token", "0123456789abcdef\n".to_owned()),
    ];
    for (name, text) in files {
        // Other processes fuzz beside this one: what they find is always whole.
        let written = folder.join(format!("{name}.{}", std::process::id()));
        fs::write(&written, text).expect("a file");
        fs::rename(written, folder.join(name)).expect("a file");
    }
    folder
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let folder = FOLDER.get_or_init(make_folder);
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    // Devices never end, and no configuration is about them.
    if text.contains("/dev") || text.contains("/proc") || text.contains("/sys") {
        return Corpus::Reject;
    }
    match config::parse("fuzz.toml", text, folder) {
        Ok((_, warnings)) => {
            assert_eq!(warnings.count(Severity::Error), 0);
            check(&warnings, text);
            check_again(text, &warnings, folder);
        }
        Err(problems) => {
            assert!(problems.count(Severity::Error) > 0);
            check(&problems, text);
        }
    }
    Corpus::Keep
});

fn check(problems: &Diagnostics, text: &str) {
    for problem in problems.problems() {
        let places = problem.span.iter().chain(problem.related.iter().map(|(span, _)| span));
        for span in places {
            assert!(span.start <= span.end && span.end <= text.len(), "{problem:?}");
            assert!(text.is_char_boundary(span.start) && text.is_char_boundary(span.end), "{problem:?}");
        }
        assert!(!problem.message.is_empty());
    }
    let shown = problems.to_string();
    assert!(shown.chars().all(|shown| shown == '\n' || !shown.is_control()), "{shown:?}");
    let places = shown.lines().filter(|line| line.trim_start().starts_with("--> fuzz.toml"));
    assert_eq!(places.count(), problems.problems().len());
}

/// Nothing of a check is left behind, and the end of the file is where it ends.
fn check_again(text: &str, warnings: &Diagnostics, folder: &Path) {
    for text in [text, &format!("{text}\n# the end\n")] {
        let (_, again) = config::parse("fuzz.toml", text, folder).expect("accepted before");
        assert_eq!(again.problems().len(), warnings.problems().len());
    }
}
