//! A small reader of BTF, the kernel's own type information: where a field is and how wide.
//!
//! Pure over bytes; anything malformed is an error or an absent field, never a panic. It
//! exists because the usual readers cost 12 to 200 ms and tens of megabytes for the few
//! dozen fields wanted here.
//!
//! Format: `Documentation/bpf/btf.rst` of the kernel.

use std::collections::HashMap;

/// Why some bytes are not BTF.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The magic number is not the one of a little-endian kernel.
    #[error("not BTF: the magic number is {0:#06x}, expected 0xeb9f")]
    Magic(u16),
    /// A header field points outside the data.
    #[error("BTF is cut short: {part} does not fit {available} bytes")]
    Truncated {
        /// Which part.
        part: &'static str,
        /// How many bytes there are.
        available: usize,
    },
    /// A type of a kind this reader does not know, so the next one cannot be found.
    #[error("BTF type {id} has the unknown kind {kind}")]
    UnknownKind {
        /// Number of the type.
        id: u32,
        /// Its kind.
        kind: u32,
    },
}

/// Where a field is inside its struct, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// From the start of the struct.
    pub offset: u32,
    /// Width; 0 for flexible arrays.
    pub size: u32,
    type_id: u32,
}

/// Anonymous members and chains of modifiers deeper than this are taken for damage.
const MAX_DEPTH: u32 = 16;
const HEADER_LEN: usize = 24;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_FLOAT: u32 = 16;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// One type's fixed part.
#[derive(Clone, Copy)]
struct Type {
    /// Where its variable part starts in the type section.
    body: usize,
    kind: u32,
    vlen: u32,
    bitfields: bool,
    size_or_type: u32,
}

/// BTF data with the types of some names found.
pub struct Btf<'a> {
    types: &'a [u8],
    /// Start of each type in `types`; type ids count from 1.
    starts: Vec<u32>,
    strings: &'a [u8],
    /// Types that have one of the wanted names; several may share one.
    named: HashMap<&'a [u8], Vec<u32>>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// Scans the types once and remembers those whose name `wanted` accepts.
    pub fn parse(bytes: &'a [u8], wanted: impl Fn(&[u8]) -> bool) -> Result<Self, BtfError> {
        let truncated = |part| BtfError::Truncated {
            part,
            available: bytes.len(),
        };
        let header = |at| u32_at(bytes, at).ok_or_else(|| truncated("the header"));
        let magic = (header(0)? & 0xffff) as u16;
        if magic != 0xeb9f {
            return Err(BtfError::Magic(magic));
        }
        if bytes.len() < HEADER_LEN {
            return Err(truncated("the header"));
        }
        let header_len = header(4)? as usize;
        let section = |offset_at, part| {
            let start = header_len.checked_add(header(offset_at)? as usize);
            let len = header(offset_at + 4)? as usize;
            start
                .and_then(|start| bytes.get(start..start.checked_add(len)?))
                .ok_or_else(|| truncated(part))
        };
        let types = section(8, "the type section")?;
        let strings = section(16, "the string section")?;

        let mut btf = Self {
            types,
            starts: Vec::new(),
            strings,
            named: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let id = btf.starts.len() as u32 + 1;
            let entry = btf.type_at(at).ok_or_else(|| truncated("a type"))?;
            btf.starts.push(at as u32);
            let name_offset = u32_at(types, at).unwrap_or(0);
            if name_offset != 0
                && let Some(name) = btf.string(name_offset)
                && wanted(name)
            {
                btf.named.entry(name).or_default().push(id);
            }
            let body = body_len(entry.kind, entry.vlen as usize).ok_or(BtfError::UnknownKind {
                id,
                kind: entry.kind,
            })?;
            at = entry.body + body;
            if at > types.len() {
                return Err(truncated("a type's members"));
            }
        }
        Ok(btf)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = u32_at(self.types, at + 4)?;
        Some(Type {
            body: at + 12,
            kind: (info >> 24) & 0x1f,
            vlen: info & 0xffff,
            bitfields: info >> 31 != 0,
            size_or_type: u32_at(self.types, at + 8)?,
        })
    }

    fn get(&self, id: u32) -> Option<Type> {
        self.type_at(*self.starts.get(id.checked_sub(1)? as usize)? as usize)
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(offset as usize..)?;
        rest.get(..rest.iter().position(|&byte| byte == 0)?)
    }

    /// Types with this name and kind.
    fn named(&self, name: &str, kinds: &'static [u32]) -> impl Iterator<Item = Type> {
        let ids = self
            .named
            .get(name.as_bytes())
            .map_or(&[][..], Vec::as_slice);
        ids.iter()
            .filter_map(|&id| self.get(id))
            .filter(|found| kinds.contains(&found.kind))
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let found = self.get(id)?;
            match found.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = found.size_or_type;
                }
                _ => return Some(found),
            }
        }
        None
    }

    fn size_of(&self, id: u32, depth: u32) -> Option<u32> {
        if depth == MAX_DEPTH {
            return None;
        }
        let found = self.resolve(id)?;
        match found.kind {
            KIND_PTR => Some(8),
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FLOAT => {
                Some(found.size_or_type)
            }
            KIND_ARRAY => {
                let element = self.size_of(u32_at(self.types, found.body)?, depth + 1)?;
                element.checked_mul(u32_at(self.types, found.body + 8)?)
            }
            _ => None,
        }
    }

    /// Where `path` (`member` or `member.member`) is in a struct or union. Members of
    /// anonymous structs and unions count as the outer struct's own, as in C. Bit fields
    /// are not found.
    pub fn field(&self, container: &str, path: &str) -> Option<Field> {
        self.named(container, &[KIND_STRUCT, KIND_UNION])
            .find_map(|outer| {
                let mut parts = path.split('.');
                let mut field = self.member(outer, parts.next()?.as_bytes(), 0)?;
                for part in parts {
                    let inner = self.resolve(field.type_id)?;
                    let next = self.member(inner, part.as_bytes(), 0)?;
                    field = Field {
                        offset: field.offset.checked_add(next.offset)?,
                        ..next
                    };
                }
                Some(field)
            })
    }

    fn member(&self, outer: Type, name: &[u8], depth: u32) -> Option<Field> {
        if depth == MAX_DEPTH || !matches!(outer.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        (0..outer.vlen as usize).find_map(|index| {
            let at = outer.body + index * 12;
            let type_id = u32_at(self.types, at + 4)?;
            let place = u32_at(self.types, at + 8)?;
            let (bits, bit_width) = if outer.bitfields {
                (place & 0xff_ffff, place >> 24)
            } else {
                (place, 0)
            };
            if bits % 8 != 0 || bit_width != 0 {
                return None;
            }
            let offset = bits / 8;
            match self.string(u32_at(self.types, at)?)? {
                b"" => {
                    let inner = self.member(self.resolve(type_id)?, name, depth + 1)?;
                    Some(Field {
                        offset: offset.checked_add(inner.offset)?,
                        ..inner
                    })
                }
                found if found == name => Some(Field {
                    offset,
                    size: self.size_of(type_id, 0)?,
                    type_id,
                }),
                _ => None,
            }
        })
    }

    /// The value of an enumerator.
    pub fn enumerator(&self, name: &str, value_name: &str) -> Option<u32> {
        self.named(name, &[KIND_ENUM, KIND_ENUM64])
            .find_map(|found| {
                let stride = if found.kind == KIND_ENUM { 8 } else { 12 };
                (0..found.vlen as usize).find_map(|index| {
                    let at = found.body + index * stride;
                    let matches = self.string(u32_at(self.types, at)?)? == value_name.as_bytes();
                    if matches {
                        u32_at(self.types, at + 4)
                    } else {
                        None
                    }
                })
            })
    }

    /// Whether the kernel has a function of this name, for instance an iterator's.
    pub fn has_function(&self, name: &str) -> bool {
        self.named(name, &[KIND_FUNC]).next().is_some()
    }

    /// The number of the kernel's function of this name.
    pub fn function(&self, name: &str) -> Option<u32> {
        let ids = self.named.get(name.as_bytes())?;
        ids.iter()
            .copied()
            .find(|id| self.get(*id).is_some_and(|found| found.kind == KIND_FUNC))
    }

    /// A BTF of nothing but the functions and typedefs that were wanted, under the numbers they
    /// have here. Whoever looks up where programs attach finds the same in it, without going
    /// through a hundred thousand other types.
    pub fn attach_points(&self) -> Vec<u8> {
        let mut points: Vec<(u32, &[u8], Type)> = self
            .named
            .iter()
            .flat_map(|(&name, ids)| ids.iter().map(move |&id| (id, name)))
            .filter_map(|(id, name)| Some((id, name, self.get(id)?)))
            .filter(|(_, _, found)| matches!(found.kind, KIND_FUNC | KIND_TYPEDEF))
            .collect();
        points.sort_unstable_by_key(|(id, ..)| *id);
        let words = |words: [u32; 3]| words.map(u32::to_le_bytes).concat();
        let filler = words([0, KIND_FWD << 24, 0]);
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        let mut next = 1;
        for (id, name, found) in points {
            types.extend(filler.repeat((id - next) as usize));
            let info = found.kind << 24 | found.vlen;
            types.extend(words([strings.len() as u32, info, found.size_or_type]));
            strings.extend_from_slice(name);
            strings.push(0);
            next = id + 1;
        }
        let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [HEADER_LEN as u32, 0, types_len, types_len, strings_len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.append(&mut types);
        bytes.append(&mut strings);
        bytes
    }

    /// How many arguments a tracepoint gives, without the leading `void *`; `None` when the
    /// kernel has no such tracepoint. Source: the typedef `btf_trace_NAME`.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<u32> {
        self.named(&format!("btf_trace_{name}"), &[KIND_TYPEDEF])
            .find_map(|found| {
                let pointer = self.resolve(found.size_or_type)?;
                let prototype = self.resolve(pointer.size_or_type)?;
                if pointer.kind != KIND_PTR || prototype.kind != KIND_FUNC_PROTO {
                    return None;
                }
                prototype.vlen.checked_sub(1)
            })
    }
}

/// Bytes that follow the fixed part of a type.
fn body_len(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
        | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
        // The last two: variables and declaration tags.
        KIND_INT | 14 | 17 => 4,
        KIND_ARRAY => 12,
        // The last one: sections of variables.
        KIND_STRUCT | KIND_UNION | KIND_ENUM64 | 15 => vlen * 12,
        KIND_ENUM | KIND_FUNC_PROTO => vlen * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
