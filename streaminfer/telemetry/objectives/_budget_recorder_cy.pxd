from streaminfer.telemetry cimport _recorder_cy
from streaminfer.telemetry.histograms._rolling_cy cimport RollingState as CRollingState
from streaminfer.telemetry.objectives._budget_cy cimport BudgetState as CBudgetState
# the build finds dependencies only in cimports of this form, not in cimports of a module
from streaminfer.telemetry._recorder_cy cimport Recorder as CRecorder

cdef class BudgetRecorder(_recorder_cy.Recorder):
    cdef CBudgetState _budget
    cdef CRollingState _recent

    cpdef record(self, long long started_ns, long long now_ns)
