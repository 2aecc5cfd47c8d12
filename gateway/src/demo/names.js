// Names and colours that every tab derives alike from a client id.

const HOW = ['Amber', 'Brisk', 'Calm', 'Dapper', 'Eager', 'Fair', 'Gentle', 'Hardy', 'Icy', 'Jolly', 'Keen', 'Lucky',
  'Merry', 'Noble', 'Olive', 'Plucky', 'Quiet', 'Ruby', 'Salty', 'Tidal', 'Umber', 'Violet', 'Windy', 'Zesty'];
const WHAT = ['Auk', 'Beluga', 'Crab', 'Dolphin', 'Eider', 'Fulmar', 'Gannet', 'Heron', 'Ibis', 'Jellyfish', 'Kelpie',
  'Lobster', 'Manta', 'Narwhal', 'Otter', 'Puffin', 'Quahog', 'Ray', 'Seal', 'Tern', 'Urchin', 'Vaquita', 'Walrus'];

/** FNV-1a, 32 bits. */
function hash(text) {
  let value = 0x811c9dc5;
  for (const character of text) value = Math.imul(value ^ character.codePointAt(0), 0x01000193) >>> 0;
  return value;
}

/** Two words for a client id. */
export function derivedName(id) {
  const value = hash(id);
  return `${HOW[value % HOW.length]} ${WHAT[Math.floor(value / HOW.length) % WHAT.length]}`;
}

/** A hue in degrees for a name. */
export function hue(name) {
  return String(hash(name) % 360);
}

/** One or two letters for a name. */
export function initials(name) {
  const words = name.split(/\s+/).filter((word) => word !== '');
  return words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join('');
}
