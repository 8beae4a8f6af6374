//! Giving back what only the start needed.
//!
//! Most of the holder's resident memory is program text that the kernel mapped around the few
//! pages that were touched at start. Dropping those mappings costs a page fault when the code
//! is needed again, and nothing else: the text is still in the page cache. A worker does it for
//! another reason: the kernel unmaps a dying process before it closes its descriptors, and
//! readers wait for that.

/// Unmaps (not discards) the text and constants of this program's files. What was never
/// written is in the files; there is nothing to lose.
pub fn drop_text() {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else {
        return;
    };
    for (start, end) in clean_ranges(&smaps) {
        // SAFETY: a mapping of our own, of a file, not writable, without a page that differs
        // from the file (relocated constants do): the next access brings the bytes back.
        unsafe {
            let address = std::ptr::with_exposed_provenance_mut(start);
            libc::madvise(address, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The read-only file mappings in `smaps` that hold nothing but the file's own pages.
fn clean_ranges(smaps: &str) -> Vec<(usize, usize)> {
    let mut clean = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(found) = header(line) {
            current = found;
        } else if let Some(rest) = line.strip_prefix("Anonymous:")
            && let Some(range) = current.take()
            && rest.trim() == "0 kB"
        {
            clean.push(range);
        }
    }
    clean
}

/// Whether `line` begins a mapping, and its addresses if it is a read-only one of a file.
fn header(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let range = (number(start)?, number(end)?);
    let permissions = fields.next()?;
    let from_file = fields.nth(2)? != "0";
    let read_only = matches!(permissions, "r-xp" | "r--p");
    Some((read_only && from_file).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_file_mappings_are_dropped_and_they_come_back() {
        let smaps = "7f00-8f00 r-xp 00001000 08:01 77   /usr/lib/libc.so.6\n\
            Rss: 100 kB\nAnonymous:  0 kB\n\
            8f00-9f00 r--p 00001000 08:01 77   /usr/lib/libc.so.6\n\
            Anonymous:  4 kB\n\
            9f00-af00 rw-p 00001000 08:01 77   /usr/lib/libc.so.6\n\
            Anonymous:  0 kB\n\
            af00-bf00 r-xp 00000000 00:00 0    [vdso]\n\
            Anonymous:  0 kB\n";
        assert_eq!(clean_ranges(smaps), [(0x7f00, 0x8f00)]);
        drop_text();
        assert_eq!(clean_ranges(smaps), [(0x7f00, 0x8f00)]);
    }
}
