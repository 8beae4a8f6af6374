//! What one worker leaves to the next: histories, load averages, the host-view switch.
//! Bytes with a version; anything malformed is as good as nothing. Pure.

use crate::bpf::CgroupId;
use crate::collect::store::Saved;
use crate::container::CgroupKey;
use crate::history::loadavg::LoadAverage;

const VERSION: u8 = 2;

/// The state of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Legacy {
    /// Whether all views show the host's values.
    pub host_view: bool,
    /// Per container.
    pub containers: Vec<Saved>,
    /// Per cgroup, where eBPF counts.
    pub loads: Vec<(CgroupId, LoadAverage)>,
}

impl Legacy {
    /// As bytes, at most `capacity`: load averages are left out first, then containers.
    #[must_use]
    pub fn to_bytes(&self, capacity: usize) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.host_view)];
        let mut count = 0_u32;
        let mut body = Vec::new();
        for saved in &self.containers {
            let before = body.len();
            put_container(&mut body, saved);
            if out.len() + 8 + body.len() > capacity {
                body.truncate(before);
                break;
            }
            count += 1;
        }
        out.extend_from_slice(&count.to_le_bytes());
        out.append(&mut body);
        let mut count = 0_u32;
        for (cgroup, load) in &self.loads {
            let bytes = load.to_bytes();
            if out.len() + 4 + body.len() + 13 + bytes.len() > capacity {
                break;
            }
            let (kind, id) = match cgroup {
                CgroupId::V2(id) => (2, *id),
                CgroupId::V1(id) => (1, *id),
            };
            body.push(kind);
            body.extend_from_slice(&id.to_le_bytes());
            put(&mut body, &bytes);
            count += 1;
        }
        out.extend_from_slice(&count.to_le_bytes());
        out.append(&mut body);
        out
    }

    /// From bytes; `None` for those of another version, or damaged ones.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [version, host_view] = take::<2>(&mut rest)?;
        if version != VERSION {
            return None;
        }
        let mut legacy = Self {
            host_view: host_view == 1,
            ..Self::default()
        };
        for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
            legacy.containers.push(get_container(&mut rest)?);
        }
        for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
            let [kind] = take::<1>(&mut rest)?;
            let id = u64::from_le_bytes(take(&mut rest)?);
            let load = LoadAverage::from_bytes(get(&mut rest)?);
            let cgroup = match kind {
                1 => CgroupId::V1(id),
                2 => CgroupId::V2(id),
                _ => return None,
            };
            legacy.loads.push((cgroup, load));
        }
        rest.is_empty().then_some(legacy)
    }
}

/// One container as bytes: a record of the journal.
#[must_use]
pub fn record(saved: &Saved) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    put_container(&mut out, saved);
    out
}

/// What [`record`] wrote; `None` for anything else.
#[must_use]
pub fn from_record(mut bytes: &[u8]) -> Option<Saved> {
    let saved = get_container(&mut bytes)?;
    bytes.is_empty().then_some(saved)
}

fn put_container(out: &mut Vec<u8>, saved: &Saved) {
    let hierarchy = u32::try_from(saved.key.hierarchy).unwrap_or(u32::MAX);
    out.extend_from_slice(&hierarchy.to_le_bytes());
    out.extend_from_slice(&saved.key.inode.to_le_bytes());
    out.push(saved.cpus);
    put(out, &saved.cpu);
    put(out, &saved.load);
    put(out, &saved.forks);
}

fn get_container(rest: &mut &[u8]) -> Option<Saved> {
    let hierarchy = u32::from_le_bytes(take(rest)?);
    let key = CgroupKey {
        hierarchy: usize::try_from(hierarchy).ok()?,
        inode: u64::from_le_bytes(take(rest)?),
    };
    let [cpus] = take::<1>(rest)?;
    Some(Saved {
        key,
        cpus,
        cpu: get(rest)?.to_vec(),
        load: get(rest)?.to_vec(),
        forks: get(rest)?.to_vec(),
    })
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&bytes[..length as usize]);
}

fn get<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(take(rest)?) as usize;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Legacy {
        let saved = |inode| Saved {
            key: CgroupKey {
                hierarchy: 3,
                inode,
            },
            cpu: vec![inode as u8; 40],
            cpus: inode as u8,
            load: LoadAverage::default().to_bytes(),
            forks: vec![7; 32],
        };
        Legacy {
            host_view: true,
            containers: (1..=3).map(saved).collect(),
            loads: vec![
                (CgroupId::V2(7), LoadAverage::default()),
                (CgroupId::V1(7), LoadAverage::default()),
            ],
        }
    }

    #[test]
    fn what_is_left_is_found() {
        let legacy = sample();
        let bytes = legacy.to_bytes(1 << 20);
        assert_eq!(Legacy::from_bytes(&bytes), Some(legacy));
    }

    #[test]
    fn a_record_is_whole_or_nothing() {
        for saved in sample().containers {
            let bytes = record(&saved);
            assert_eq!(from_record(&bytes[..bytes.len() - 1]), None);
            assert_eq!(from_record(&[&bytes[..], b"x"].concat()), None);
            assert_eq!(from_record(&bytes), Some(saved));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_rest_is_whole() {
        let legacy = sample();
        let whole = legacy.to_bytes(1 << 20).len();
        for capacity in 10..whole {
            let bytes = legacy.to_bytes(capacity);
            assert!(
                bytes.len() <= capacity.max(10),
                "{} in {capacity}",
                bytes.len()
            );
            let found = Legacy::from_bytes(&bytes).unwrap();
            assert!(legacy.containers.starts_with(&found.containers));
            assert!(legacy.loads.starts_with(&found.loads));
        }
    }

    #[test]
    fn another_version_and_a_torn_end_are_nothing() {
        let mut bytes = sample().to_bytes(1 << 20);
        assert_eq!(Legacy::from_bytes(&bytes[..bytes.len() - 1]), None);
        bytes[0] += 1;
        assert_eq!(Legacy::from_bytes(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_something_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Legacy::from_bytes(&bytes), from_record(&bytes));
        }
    }
}
