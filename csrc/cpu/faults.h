// Reading a mapped file of which a part is gone, since somebody made it shorter or its disk fails. The system says so by
// a signal, SIGBUS, that would end the process.
#pragma once

namespace fastgan {

// Calls body(data). False where it read such memory and was left there and then: without its destructors.
bool could_read(void (*body)(void*), void* data);

// The same of something that can be called.
template <typename Body>
bool could_read(Body body) {
  return could_read([](void* data) { (*static_cast<Body*>(data))(); }, &body);
}

}  // namespace fastgan
