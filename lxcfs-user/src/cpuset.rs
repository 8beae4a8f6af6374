//! Sets of CPU numbers, parsed from and printed in the kernel's list format (`0-3,8`)
//! and mask format (`ff,ffffffff`). Pure.

use std::fmt;

/// Larger than any `NR_CPUS`; bounds what a malformed list can make us allocate.
pub const CPU_LIMIT: u32 = lxcfs_common::catalogue::MAX_CPUS;

/// A set of CPU (or NUMA node) numbers, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    /// Bit `n % 64` of word `n / 64`; the last word is never zero.
    words: Vec<u64>,
}

/// A list that does not follow the kernel's format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a CPU list: {0:?}")]
pub struct ParseError(String);

impl CpuSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// The set `0..n`.
    #[must_use]
    pub fn first(n: u32) -> Self {
        (0..n.min(CPU_LIMIT)).collect()
    }

    /// Parses the kernel's list format; surrounding white space is allowed and an empty
    /// list is the empty set.
    ///
    /// # Errors
    /// For anything else, including numbers of [`CPU_LIMIT`] and above and descending
    /// ranges.
    pub fn parse_list(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError(text.chars().take(64).collect());
        let mut set = Self::new();
        for range in text
            .trim()
            .split(',')
            .map(str::trim)
            .filter(|range| !range.is_empty())
        {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            let number = |digits: &str| {
                digits
                    .parse::<u32>()
                    .ok()
                    .filter(|n| *n < CPU_LIMIT)
                    .ok_or_else(error)
            };
            let (low, high) = (number(low)?, number(high)?);
            if low > high {
                return Err(error());
            }
            (low..=high).for_each(|cpu| set.insert(cpu));
        }
        Ok(set)
    }

    /// Adds `cpu`; numbers of [`CPU_LIMIT`] and above are ignored.
    pub fn insert(&mut self, cpu: u32) {
        if cpu >= CPU_LIMIT {
            return;
        }
        let word = cpu as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (cpu % 64);
    }

    /// Whether `cpu` is in the set.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.words
            .get(cpu as usize / 64)
            .is_some_and(|word| word & (1 << (cpu % 64)) != 0)
    }

    /// How many CPUs the set has.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the set has no CPU.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.words.len() as u32 * 64).filter(|cpu| self.contains(*cpu))
    }

    /// The members that are also in `other`.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|cpu| other.contains(*cpu)).collect()
    }

    /// The largest member.
    #[must_use]
    pub fn last(&self) -> Option<u32> {
        let word = self.words.len().checked_sub(1)?;
        Some(word as u32 * 64 + 63 - self.words[word].leading_zeros())
    }

    /// The kernel's mask format (`%*pb`) for a machine of `nr_cpu_ids` CPUs: 32-bit groups of hex
    /// digits, the highest first, the first group only as wide as `nr_cpu_ids` needs.
    #[must_use]
    pub fn to_mask(&self, nr_cpu_ids: u32) -> String {
        use fmt::Write as _;
        let groups = nr_cpu_ids.max(1).div_ceil(32);
        let mut text = String::new();
        for group in (0..groups).rev() {
            let word = self.words.get(group as usize / 2).copied().unwrap_or(0);
            let bits = (word >> (32 * (group % 2))) as u32;
            let width = match (group + 1 == groups, nr_cpu_ids % 32) {
                (true, rest) if rest != 0 => rest.div_ceil(4) as usize,
                _ => 8,
            };
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{bits:0width$x}");
        }
        text
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut set = Self::new();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

/// The kernel's list format; the empty set prints as nothing.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut comma = "";
        while let Some(low) = cpus.next() {
            let mut high = low;
            while cpus.next_if(|next| *next == high + 1).is_some() {
                high += 1;
            }
            if low == high {
                write!(f, "{comma}{low}")?;
            } else {
                write!(f, "{comma}{low}-{high}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_of_the_kernel_round_trip() {
        for list in ["", "0", "0-3", "0-1,4,6-7", "63-64,127-128"] {
            assert_eq!(
                CpuSet::parse_list(&format!("{list}\n"))
                    .unwrap()
                    .to_string(),
                list
            );
        }
    }

    #[test]
    fn malformed_lists_are_refused_with_their_text() {
        for list in ["a", "3-1", "1-", "-1", "99999999999", "8192", "0-8192"] {
            assert!(CpuSet::parse_list(list).is_err(), "{list}");
        }
    }

    #[test]
    fn masks_have_the_width_of_the_machine() {
        assert_eq!(CpuSet::first(2).to_mask(2), "3");
        assert_eq!(CpuSet::first(1).to_mask(8), "01");
        assert_eq!(CpuSet::first(1).to_mask(32), "00000001");
        assert_eq!(
            CpuSet::parse_list("0,32").unwrap().to_mask(40),
            "01,00000001"
        );
        assert_eq!(
            CpuSet::parse_list("70").unwrap().to_mask(128),
            "00000000,00000040,00000000,00000000"
        );
    }

    #[test]
    fn the_last_member_is_the_largest() {
        assert_eq!(CpuSet::new().last(), None);
        assert_eq!(CpuSet::parse_list("3,64").unwrap().last(), Some(64));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,80}") {
            let _ = CpuSet::parse_list(&text);
        }

        #[test]
        fn printing_and_parsing_agree(cpus in prop::collection::btree_set(0..CPU_LIMIT, 0..60)) {
            let set: CpuSet = cpus.iter().copied().collect();
            prop_assert_eq!(set.len() as usize, cpus.len());
            prop_assert_eq!(CpuSet::parse_list(&set.to_string()).unwrap(), set);
        }
    }
}
