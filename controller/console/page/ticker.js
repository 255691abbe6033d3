/** A beat four times a second, from a thread of its own: see stream.js. */
setInterval(() => postMessage(null), 250);
