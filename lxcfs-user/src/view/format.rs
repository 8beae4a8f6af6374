//! Writing numbers the way the kernel's `seq_file` helpers do, and reading them back from
//! host templates. No `format!` on the hot path: a `meminfo` has more than fifty numbers.

/// Longest decimal `u64`.
const DIGITS: usize = 20;

/// Appends `number` in decimal, like `seq_put_decimal_ull`.
pub(crate) fn put_u64(out: &mut Vec<u8>, number: u64) {
    put_width(out, number, 0);
}

/// Appends `number` right-aligned in at least `width` columns, like
/// `seq_put_decimal_ull_width`.
pub(crate) fn put_width(out: &mut Vec<u8>, number: u64, width: usize) {
    let mut digits = [b' '; DIGITS];
    let mut rest = number;
    let mut used = 0;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (rest % 10) as u8;
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    for _ in used..width {
        out.push(b' ');
    }
    out.extend(digits.iter().skip(DIGITS - used));
}

/// Appends a space and `number`: one column of `/proc/stat` or `/proc/diskstats`.
pub(crate) fn put_column(out: &mut Vec<u8>, number: u64) {
    out.push(b' ');
    put_u64(out, number);
}

/// Appends `hundredths` as `%lu.%02lu`.
pub(crate) fn put_hundredths(out: &mut Vec<u8>, hundredths: u64) {
    put_u64(out, hundredths / 100);
    let rest = (hundredths % 100) as u8;
    out.extend([b'.', b'0' + rest / 10, b'0' + rest % 10]);
}

/// Appends `label`, its colon and spaces up to `column`.
pub(crate) fn put_label(out: &mut Vec<u8>, label: &str, column: usize) {
    out.extend_from_slice(label.as_bytes());
    out.push(b':');
    for _ in label.len() + 1..column {
        out.push(b' ');
    }
}

/// Splits `/proc/meminfo`'s `Name:   value …` into name and what follows the colon.
pub(crate) fn split_label(line: &str) -> Option<(&str, &str)> {
    line.split_once(':')
}

/// The decimal number `text` starts with after white space; too large saturates.
pub(crate) fn leading_u64(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let mut digits = text.bytes().take_while(u8::is_ascii_digit).peekable();
    digits.peek()?;
    Some(digits.fold(0u64, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_those_of_the_kernel() {
        assert_eq!(written(|out| put_width(out, 7, 8)), "       7");
        assert_eq!(written(|out| put_width(out, 123_456_789, 8)), "123456789");
        assert_eq!(
            written(|out| put_label(out, "MemTotal", 16)),
            "MemTotal:       "
        );
        assert_eq!(written(|out| put_hundredths(out, 5)), "0.05");
        assert_eq!(written(|out| put_hundredths(out, 12_340)), "123.40");
    }

    #[test]
    fn numbers_are_found_behind_white_space_only() {
        assert_eq!(leading_u64("       42 kB"), Some(42));
        assert_eq!(leading_u64("99999999999999999999999 kB"), Some(u64::MAX));
        assert_eq!(leading_u64(" kB 1"), None);
        assert_eq!(leading_u64(""), None);
    }

    proptest! {
        #[test]
        fn every_number_is_written_as_the_standard_library_does(n: u64, width in 0usize..30) {
            prop_assert_eq!(written(|out| put_width(out, n, width)), format!("{n:width$}"));
            prop_assert_eq!(leading_u64(&n.to_string()), Some(n));
        }
    }
}
