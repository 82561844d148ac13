// Browsers refuse workers to pages opened from a disk. There the search runs in a hidden frame,
// which has what its script uses of a worker: messages, and importScripts. The theme's script looks
// for the name IFrameWorker to know that it is in one.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.inner = new Promise(done => {
        const frame = document.createElement("iframe")
        frame.hidden = true
        frame.srcdoc = "<!doctype html><body></body>"
        frame.onload = () => done(this.prepare(frame.contentWindow, url))
        document.body.append(frame)
      })
    }

    async prepare(inner, url) {
      const load = name =>
        new Promise((done, failed) => {
          const script = inner.document.createElement("script")
          Object.assign(script, { src: name, onload: done, onerror: failed })
          inner.document.body.append(script)
        })
      inner.importScripts = async (...names) => {
        for (const name of names) await load(name)
      }
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      await load(url)
      return inner
    }

    async postMessage(data) {
      const inner = await this.inner
      inner.dispatchEvent(new inner.MessageEvent("message", { data }))
    }
  }
}
